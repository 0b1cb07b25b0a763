package node

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lapstrake.dev/e2e/cluster/internal/build"
	"lapstrake.dev/e2e/cluster/internal/host"
)

// configFiles renders every configuration file, by its path below the state
// folder.
func (c *Cluster) configFiles(programs build.Built, resolvConf string, mtu int) map[string]string {
	files := map[string]string{
		"config/resolv.conf":          resolvConf,
		"config/containerd.toml":      c.containerdConfig(programs),
		"config/cni/10-pods.conflist": c.cniConfig(mtu),
		"config/kubelet.yaml":         c.kubeletConfig(),
		"config/kube-proxy.yaml":      c.kubeProxyConfig(),
		"config/registry.yaml":        c.registryConfig("registry", Registry, false),
		"config/registry-tls.yaml":    c.registryConfig("registry-tls", SecureRegistry, true),
	}
	for name, server := range map[string]string{
		Registry:        "http://" + Registry,
		"registry.test": "http://" + Registry,
		SecureRegistry:  "https://" + SecureRegistry,
	} {
		files["config/registries/"+name+"/hosts.toml"] = c.registryHost(server)
	}
	return files
}

func (c *Cluster) writeConfig(programs build.Built) error {
	resolvConf, err := podResolvConf()
	if err != nil {
		return err
	}
	for name, text := range c.configFiles(programs, resolvConf, host.UplinkMTU()) {
		path := c.path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := host.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// podResolvConf gives the host's name servers, as pods can use them.
func podResolvConf() (string, error) {
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if usable := reachableServers(string(text)); usable != "" {
			return usable, nil
		}
	}
	return "", fmt.Errorf("the host has no name server that pods can reach: /etc/resolv.conf names only loopback addresses")
}

// reachableServers keeps what of a resolv.conf works from another network
// namespace, or nothing when no name server does.
func reachableServers(text string) string {
	var kept strings.Builder
	servers := 0
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case fields[0] == "nameserver" && (strings.HasPrefix(fields[1], "127.") || fields[1] == "::1"):
		case fields[0] == "nameserver":
			servers++
			fmt.Fprintln(&kept, strings.Join(fields, " "))
		case fields[0] == "search" || fields[0] == "options":
			fmt.Fprintln(&kept, strings.Join(fields, " "))
		}
	}
	if servers == 0 {
		return ""
	}
	return kept.String()
}

func (c *Cluster) containerdConfig(programs build.Built) string {
	return fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q

[grpc]
address = %[3]q

[debug]
level = "warn"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %[4]q

[plugins."io.containerd.cri.v1.images".registry]
config_path = %[5]q

[plugins."io.containerd.cri.v1.runtime"]
# Machines without CAP_SYS_RESOURCE refuse a lower oom_score_adj than one's own.
restrict_oom_score_adj = true
tolerate_missing_hugetlb_controller = true
disable_hugetlb_controller = true
# So that nothing is left in /run/netns.
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = %[6]q
SystemdCgroup = false
Root = %[9]q

[plugins."io.containerd.cri.v1.runtime".cni]
use_internal_loopback = true
bin_dirs = [%[7]q]
conf_dir = %[8]q

[plugins."io.containerd.nri.v1.nri"]
disable = true
`,
		c.path("containerd", "root"), c.path("containerd", "state"), c.containerdSocket(), PauseImage,
		c.path("config", "registries"), filepath.Join(programs.Tools, "runc"), programs.Tools, c.path("config", "cni"), c.path("containerd", "runc"))
}

func (c *Cluster) registryHost(server string) string {
	text := fmt.Sprintf("server = %q\n\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", server, server)
	if strings.HasPrefix(server, "https:") {
		text += fmt.Sprintf("ca = %q\n", c.RegistryCA())
	}
	return text
}

func (c *Cluster) cniConfig(mtu int) string {
	return pretty(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "pods",
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": "cni0", "mtu": mtu, "isGateway": true, "hairpinMode": true,
				"ipMasq": true, "ipMasqBackend": "nftables",
				"ipam": map[string]any{
					"type": "host-local", "dataDir": c.path("cni"),
					"ranges": []any{[]any{map[string]any{"subnet": podRange, "rangeStart": "10.244.0.10"}}},
					"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "backend": "nftables", "capabilities": map[string]any{"portMappings": true}},
		},
	})
}

func (c *Cluster) kubeletConfig() string {
	return pretty(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": c.path("pki", "ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"address":                  NodeAddress,
		"tlsCertFile":              c.path("pki", "kubelet.crt"),
		"tlsPrivateKeyFile":        c.path("pki", "kubelet.key"),
		"containerRuntimeEndpoint": "unix://" + c.containerdSocket(),
		"resolvConf":               c.path("config", "resolv.conf"),
		"volumePluginDir":          c.path("kubelet-plugins"),
		"podLogsDir":               c.path("pod-logs"),
		"maxPods":                  200,
		"userNamespaces":           map[string]any{"idsPerPod": 65536},
		// A builder in Baseline mode needs unshare, which the runtime's default
		// profile refuses.
		"seccompDefault": false,

		// Any machine will do: cgroup v1 or v2, with swap, with a full disk.
		"failCgroupV1":                  false,
		"cgroupDriver":                  "cgroupfs",
		"cgroupRoot":                    "/" + c.cgroup(),
		"enforceNodeAllocatable":        []string{},
		"localStorageCapacityIsolation": false,
		"failSwapOn":                    false,
		"evictionHard":                  map[string]string{},
		"imageGCHighThresholdPercent":   100, // off
		"makeIPTablesUtilChains":        false,

		// A test's pods come in a burst.
		"serializeImagePulls":                    false,
		"registryPullQPS":                        0,
		"eventRecordQPS":                         0,
		"kubeAPIQPS":                             100,
		"kubeAPIBurst":                           200,
		"imagePullCredentialsVerificationPolicy": "NeverVerify",
		"containerLogMaxSize":                    "20Mi",
	})
}

func (c *Cluster) kubeProxyConfig() string {
	return pretty(map[string]any{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "nftables",
		"clientConnection":   map[string]any{"kubeconfig": c.path("config", "kube-proxy.kubeconfig")},
		"hostnameOverride":   c.Name,
		"clusterCIDR":        podRange,
		"healthzBindAddress": "127.0.0.1:10256",
		"metricsBindAddress": "127.0.0.1:10249",
		// These belong to the machine as a whole: left alone.
		"conntrack": map[string]any{"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	})
}

func (c *Cluster) registryConfig(name, address string, secure bool) string {
	http := map[string]any{
		"addr":    address,
		"headers": map[string]any{"X-Content-Type-Options": []string{"nosniff"}},
		// One process alone serves it: any text will do.
		"secret": name,
	}
	config := map[string]any{
		"version": 0.1,
		"log":     map[string]any{"level": "warn", "accesslog": map[string]any{"disabled": true}},
		"storage": map[string]any{
			"filesystem": map[string]any{"rootdirectory": c.path(name)},
			"delete":     map[string]any{"enabled": true},
		},
		"http": http,
	}
	if secure {
		http["tls"] = map[string]any{"certificate": c.path("pki", "registry.crt"), "key": c.path("pki", "registry.key")}
		config["auth"] = map[string]any{"htpasswd": map[string]any{"realm": "lapstrake", "path": c.path("config", "htpasswd")}}
	}
	return pretty(config)
}

// pretty renders a value as JSON, which every YAML reader takes too.
func pretty(value any) string {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		panic("maps of plain values always encode: " + err.Error())
	}
	return string(text) + "\n"
}
