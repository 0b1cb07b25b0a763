package node

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lapstrake.dev/e2e/cluster/internal/build"
)

func cluster(t *testing.T) *Cluster {
	t.Helper()
	c, err := New("one", filepath.Join(t.TempDir(), "one"))
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"pki", "config"} {
		if err := os.MkdirAll(c.path(folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestNamesAndFoldersThatWouldHarmTheMachineAreRefused(t *testing.T) {
	for _, name := range []string{"", "UPPER", "a/b", "-a", "a-", strings.Repeat("a", 40)} {
		if _, err := New(name, ""); err == nil {
			t.Errorf("name %q is taken", name)
		}
	}
	for _, dir := range []string{"/", "/var"} {
		if _, err := New("one", dir); err == nil {
			t.Errorf("state folder %q is taken, which `down` would remove", dir)
		}
	}
}

func TestKubeletSettingsThatBuilderPodsNeed(t *testing.T) {
	var config map[string]any
	if err := json.Unmarshal([]byte(cluster(t).kubeletConfig()), &config); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"seccompDefault": false, "failCgroupV1": false, "cgroupDriver": "cgroupfs",
		"cgroupRoot": "/lapstrake-one", "localStorageCapacityIsolation": false, "maxPods": 200.0,
	} {
		if config[name] != want {
			t.Errorf("%s is %v, want %v", name, config[name], want)
		}
	}
	if list, ok := config["enforceNodeAllocatable"].([]any); !ok || len(list) != 0 {
		t.Errorf("enforceNodeAllocatable is %v, want an empty list: left out, it means pods", config["enforceNodeAllocatable"])
	}
}

func TestContainerdKeepsEverythingInTheStateFolder(t *testing.T) {
	c := cluster(t)
	text := c.containerdConfig(build.Built{Tools: "/tools"})
	for _, want := range []string{
		`root = "` + c.Dir + `/containerd/root"`, `state = "` + c.Dir + `/containerd/state"`,
		"restrict_oom_score_adj = true", "netns_mounts_under_state_dir = true",
		`BinaryName = "/tools/runc"`, `sandbox = "` + PauseImage + `"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %s:\n%s", want, text)
		}
	}
}

func TestTheAliasAndBothRegistriesHaveHostFiles(t *testing.T) {
	files := cluster(t).configFiles(build.Built{}, "nameserver 192.0.2.1\n", 1400)
	for name, want := range map[string]string{
		"10.244.0.1:5000": `[host."http://10.244.0.1:5000"]`,
		"registry.test":   `[host."http://10.244.0.1:5000"]`,
		"10.244.0.1:5443": "ca = ",
	} {
		if text := files["config/registries/"+name+"/hosts.toml"]; !strings.Contains(text, want) {
			t.Errorf("%s: %q lacks %s", name, text, want)
		}
	}
	if !strings.Contains(files["config/cni/10-pods.conflist"], `"mtu": 1400`) {
		t.Error("pods do not get the uplink's packet size")
	}
	if strings.Contains(files["config/registry.yaml"], "htpasswd") || !strings.Contains(files["config/registry-tls.yaml"], "htpasswd") {
		t.Error("the password belongs to the secure registry alone")
	}
}

func TestPodsNeverGetALoopbackNameServer(t *testing.T) {
	for text, want := range map[string]string{
		"nameserver 127.0.0.53\noptions edns0\n":                           "",
		"# made by hand\nnameserver 127.0.0.1\nnameserver  192.0.2.1\n":    "nameserver 192.0.2.1\n",
		"search example.org\nnameserver 192.0.2.1\nnameserver ::1\n":       "search example.org\nnameserver 192.0.2.1\n",
		"nameserver 192.0.2.1\nsortlist 192.0.2.0\noptions ndots:1 rotate": "nameserver 192.0.2.1\noptions ndots:1 rotate\n",
	} {
		if got := reachableServers(text); got != want {
			t.Errorf("%q gives %q, want %q", text, got, want)
		}
	}
}

func TestEveryCertificateIsSignedByItsAuthority(t *testing.T) {
	c := cluster(t)
	if err := c.writePKI(); err != nil {
		t.Fatal(err)
	}
	read := func(name string) *x509.Certificate {
		t.Helper()
		text, err := os.ReadFile(c.path("pki", name))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return certificate
	}
	for _, check := range []struct {
		ca, file, host string
		usage          x509.ExtKeyUsage
	}{
		{"ca.crt", "apiserver.crt", NodeAddress, x509.ExtKeyUsageServerAuth},
		{"ca.crt", "apiserver.crt", "kubernetes.default.svc", x509.ExtKeyUsageServerAuth},
		{"ca.crt", "kubelet.crt", NodeAddress, x509.ExtKeyUsageServerAuth},
		{"ca.crt", "admin.crt", "", x509.ExtKeyUsageClientAuth},
		{"registry-ca.crt", "registry.crt", NodeAddress, x509.ExtKeyUsageServerAuth},
		{"front-proxy-ca.crt", "front-proxy.crt", "", x509.ExtKeyUsageClientAuth},
	} {
		roots := x509.NewCertPool()
		roots.AddCert(read(check.ca))
		if _, err := read(check.file).Verify(x509.VerifyOptions{Roots: roots, DNSName: check.host, KeyUsages: []x509.ExtKeyUsage{check.usage}}); err != nil {
			t.Errorf("%s for %q: %v", check.file, check.host, err)
		}
	}
	for file, want := range map[string]os.FileMode{c.Kubeconfig(): 0o600, c.path("pki", "ca.key"): 0o600, c.RegistryPassword(): 0o600, c.RegistryCA(): 0o644} {
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
}

func TestOnlyProcessesOfThisClusterAreItsOwn(t *testing.T) {
	c, err := New("one", "/var/lib/lapstrake-cluster/one")
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]bool{
		"/cache/kube etcd --data-dir=/var/lib/lapstrake-cluster/one/etcd":                                   true,
		"/cache/kube etcd --data-dir=/var/lib/lapstrake-cluster/one-more/etcd":                              false,
		"/cache/containerd-shim-runc-v2 -address /var/lib/lapstrake-cluster/one/containerd/containerd.sock": true,
		"/usr/bin/containerd-shim-runc-v2 -address /run/containerd/containerd.sock":                         false,
		"/var/lib/lapstrake-cluster/one/bin/lapstrake-cluster provisioner --name one":                       true,
		"/var/lib/lapstrake-cluster/one/bin/lapstrake-cluster down":                                         false,
		"tail -f /var/lib/lapstrake-cluster/one/logs/etcd.log":                                              false,
	} {
		if got := c.ours(strings.Fields(line)); got != want {
			t.Errorf("%s: %v", line, got)
		}
	}
}
