package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lapstrake.dev/e2e/cluster/internal/api"
	"lapstrake.dev/e2e/cluster/internal/build"
	"lapstrake.dev/e2e/cluster/internal/host"
)

// program is one process of the cluster.
type program struct {
	name string
	// binary and args as they are started.
	binary string
	args   []string
	// ready tells whether it serves.
	ready func(context.Context) error
}

// readyWithin bounds a program's start. The slowest took 8 s on two busy cores.
const readyWithin = 90 * time.Second

// Programs names all programs in the order in which they start.
var Programs = []string{
	"etcd", "containerd", "registry", "registry-tls", "kube-apiserver",
	"kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "provisioner",
}

// programs describes every process.
func (c *Cluster) programs(built build.Built) map[string]program {
	kube := func(name string, ready func(context.Context) error, args ...string) program {
		return program{name: name, binary: built.Kube, args: append([]string{name}, args...), ready: ready}
	}
	tool := func(name, binary string, ready func(context.Context) error, args ...string) program {
		return program{name: name, binary: filepath.Join(built.Tools, binary), args: args, ready: ready}
	}
	pki := func(name string) string { return c.path("pki", name) }
	config := func(name string) string { return c.path("config", name) }
	all := []program{
		kube("etcd", c.httpReady("http://127.0.0.1:2379/health", 200),
			"--name="+c.Name, "--data-dir="+c.path("etcd"), "--log-level=warn",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster="+c.Name+"=http://127.0.0.1:2380",
			// The cluster is thrown away with the machine: no need to wait for the disk.
			"--unsafe-no-fsync"),
		tool("containerd", "containerd", c.containerdReady(), "--config="+config("containerd.toml")),
		tool("registry", "registry", c.httpReady("http://"+Registry+"/v2/", 200), "serve", config("registry.yaml")),
		tool("registry-tls", "registry", c.httpReady("https://"+SecureRegistry+"/v2/", 401), "serve", config("registry-tls.yaml")),
		kube("kube-apiserver", c.apiServerReady, apiServerArgs(pki)...),
		kube("kube-controller-manager", c.httpReady("https://127.0.0.1:10257/healthz", 200),
			"--kubeconfig="+config("kube-controller-manager.kubeconfig"),
			"--authentication-kubeconfig="+config("kube-controller-manager.kubeconfig"),
			"--authorization-kubeconfig="+config("kube-controller-manager.kubeconfig"),
			"--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials=true",
			"--service-account-private-key-file="+pki("service-accounts.key"), "--root-ca-file="+pki("ca.crt"),
			"--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"),
			"--allocate-node-cidrs=false", "--kube-api-qps=200", "--kube-api-burst=400", "--profiling=false"),
		kube("kube-scheduler", c.httpReady("https://127.0.0.1:10259/healthz", 200),
			"--kubeconfig="+config("kube-scheduler.kubeconfig"),
			"--authentication-kubeconfig="+config("kube-scheduler.kubeconfig"),
			"--authorization-kubeconfig="+config("kube-scheduler.kubeconfig"),
			"--bind-address=127.0.0.1", "--leader-elect=false", "--kube-api-qps=200", "--kube-api-burst=400", "--profiling=false"),
		kube("kubelet", c.kubeletReady(),
			"--config="+config("kubelet.yaml"), "--kubeconfig="+config("kubelet.kubeconfig"),
			"--root-dir="+c.path("kubelet"), "--cert-dir="+c.path("kubelet", "pki"),
			"--hostname-override="+c.Name, "--node-ip="+NodeAddress),
		kube("kube-proxy", c.httpReady("http://127.0.0.1:10256/livez", 200), "--config="+config("kube-proxy.yaml")),
		{name: "provisioner", binary: c.path("bin", "lapstrake-cluster"),
			args:  []string{"provisioner", "--name", c.Name, "--state", c.Dir},
			ready: c.running("provisioner")},
	}
	byName := map[string]program{}
	for _, p := range all {
		byName[p.name] = p
	}
	return byName
}

func apiServerArgs(pki func(string) string) []string {
	return []string{
		"--advertise-address=" + NodeAddress, "--secure-port=6443", "--service-cluster-ip-range=" + serviceRange,
		"--etcd-servers=http://127.0.0.1:2379", "--allow-privileged=true", "--profiling=false",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--client-ca-file=" + pki("ca.crt"),
		"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
		"--kubelet-client-certificate=" + pki("apiserver-client.crt"), "--kubelet-client-key=" + pki("apiserver-client.key"),
		"--kubelet-certificate-authority=" + pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + pki("service-accounts.key"), "--service-account-signing-key-file=" + pki("service-accounts.key"),
		"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + pki("front-proxy.crt"), "--proxy-client-key-file=" + pki("front-proxy.key"),
	}
}

// environment is what every program sees: the caller's proxy settings and
// little else.
func (c *Cluster) environment(built build.Built) []string {
	environment := []string{
		"PATH=" + built.Tools + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + c.Dir,
		"OTEL_TRACES_EXPORTER=none", // else the registry looks for a collector
		"NO_PROXY=" + strings.Join([]string{"127.0.0.1", "localhost", podRange, serviceRange, hostAddress, linkAddress}, ","),
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if value := os.Getenv(name); value != "" {
			environment = append(environment, name+"="+value)
		}
	}
	return environment
}

// launch starts a program without waiting until it serves.
func (c *Cluster) launch(built build.Built, p program) error {
	_, err := host.Daemon{
		Record: c.record(p.name), Log: c.Log(p.name), Network: c.network().Path(),
		Program: p.binary, Args: p.args, Env: c.environment(built),
	}.Start()
	return err
}

// await waits until a program serves, and says what its log says when it ends
// instead.
func (c *Cluster) await(ctx context.Context, p program) error {
	return host.Until(ctx, readyWithin, p.name+" to serve", func(ctx context.Context) error {
		if err := c.running(p.name)(ctx); err != nil {
			return host.Final{Err: fmt.Errorf("%s ended:\n%s", p.name, host.Tail(c.Log(p.name), 15))}
		}
		return p.ready(ctx)
	})
}

// running tells whether a program's process is there.
func (c *Cluster) running(name string) func(context.Context) error {
	return func(context.Context) error {
		process, err := host.Recorded(c.record(name))
		if err != nil {
			return fmt.Errorf("%s was not started", name)
		}
		if !process.Alive() {
			return fmt.Errorf("%s does not run", name)
		}
		return nil
	}
}

// httpReady asks a health page from inside the cluster's network.
func (c *Cluster) httpReady(url string, want int) func(context.Context) error {
	client := &http.Client{
		Timeout: 3 * time.Second,
		Transport: &http.Transport{
			DialContext:       c.network().DialContext,
			DisableKeepAlives: true,
			// Only liveness is asked, from a loopback address.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
	}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != want {
			text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10)) // only to say more
			return fmt.Errorf("%s answers %s: %s", url, response.Status, text)
		}
		return nil
	}
}

func (c *Cluster) containerdReady() func(context.Context) error {
	return func(ctx context.Context) error {
		if !host.Exists(c.containerdSocket()) {
			return errors.New("containerd has no socket yet")
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return criServes(ctx, c.containerdSocket())
	}
}

// Client is the administrator's.
func (c *Cluster) Client() (*api.Client, error) {
	var texts [3][]byte
	for i, name := range []string{"ca.crt", "admin.crt", "admin.key"} {
		text, err := os.ReadFile(c.path("pki", name))
		if err != nil {
			return nil, err
		}
		texts[i] = text
	}
	return api.New(APIServer, texts[0], texts[1], texts[2])
}

func (c *Cluster) apiServerReady(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var answer []byte
	return client.Do(ctx, http.MethodGet, "/readyz", nil, &answer)
}

// kubeletReady asks the kubelet itself and then what the cluster thinks of the
// node.
func (c *Cluster) kubeletReady() func(context.Context) error {
	healthz := c.httpReady("http://127.0.0.1:10248/healthz", 200)
	return func(ctx context.Context) error {
		if err := healthz(ctx); err != nil {
			return err
		}
		client, err := c.Client()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		return c.nodeReady(ctx, client)
	}
}

// nodeBack tells whether a kubelet that was started again has reported, since a
// Ready condition alone may be the one from before, and whether it has taken up
// its pods, since it answers for none before. A new cluster need not wait for
// it: the first report can take ten seconds more than the first pod.
func (c *Cluster) nodeBack(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	began, err := os.Stat(c.record("kubelet"))
	if err != nil {
		return err
	}
	var lease struct {
		Spec struct {
			RenewTime time.Time `json:"renewTime"`
		} `json:"spec"`
	}
	if err := client.Do(ctx, http.MethodGet, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"+c.Name, nil, &lease); err != nil {
		return err
	}
	if lease.Spec.RenewTime.Before(began.ModTime()) {
		return errors.New("the node has not reported since the kubelet's start")
	}
	type podList struct {
		Items []struct {
			Metadata struct {
				Name, Namespace, UID string
			} `json:"metadata"`
			Status struct {
				Phase string `json:"phase"`
			} `json:"status"`
		} `json:"items"`
	}
	var wanted, taken podList
	if err := client.Do(ctx, http.MethodGet, "/api/v1/pods?fieldSelector=spec.nodeName="+c.Name, nil, &wanted); err != nil {
		return err
	}
	if err := client.Do(ctx, http.MethodGet, "/api/v1/nodes/"+c.Name+"/proxy/pods", nil, &taken); err != nil {
		return err
	}
	knows := map[string]bool{}
	for _, pod := range taken.Items {
		knows[pod.Metadata.UID] = true
	}
	for _, pod := range wanted.Items {
		if pod.Status.Phase == "Running" && !knows[pod.Metadata.UID] {
			return fmt.Errorf("the kubelet has not taken up pod %s/%s yet", pod.Metadata.Namespace, pod.Metadata.Name)
		}
	}
	return nil
}

func (c *Cluster) nodeReady(ctx context.Context, client *api.Client) error {
	var node struct {
		Status struct {
			Conditions []struct {
				Type, Status, Message string
			} `json:"conditions"`
		} `json:"status"`
	}
	if err := client.Do(ctx, http.MethodGet, "/api/v1/nodes/"+c.Name, nil, &node); err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" {
			if condition.Status == "True" {
				return nil
			}
			return fmt.Errorf("node %s is not ready: %s", c.Name, condition.Message)
		}
	}
	return fmt.Errorf("node %s has not reported yet", c.Name)
}
