// Package node brings a one-node Kubernetes up and down again: its network
// namespace, certificates, configuration files and programs.
//
// Holds: everything that a cluster makes is below its state folder or carries
// its name, so that Down finds it even when Up was killed half way. Never:
// touches another cluster on the machine.
package node

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"lapstrake.dev/e2e/cluster/internal/build"
	"lapstrake.dev/e2e/cluster/internal/host"
)

// Addresses of the cluster. They are fixed, so that manifests and tests can
// name the registry; one cluster runs on a machine at a time.
const (
	NodeAddress    = "10.244.0.1"
	podRange       = "10.244.0.0/24"
	serviceRange   = "10.96.0.0/16"
	serviceAddress = "10.96.0.1"
	hostAddress    = "10.245.0.1"
	linkAddress    = "10.245.0.2"
	APIServer      = "https://" + NodeAddress + ":6443"
	// Registry takes anybody, over plain HTTP.
	Registry = NodeAddress + ":5000"
	// SecureRegistry wants TLS with the cluster's CA and a password.
	SecureRegistry = NodeAddress + ":5443"
	// RegistryUser is who logs in at the secure registry.
	RegistryUser = "lapstrake"
	// PauseImage holds the pods' namespaces.
	PauseImage = "lapstrake.dev/pause:1"
)

// Cluster is one cluster, running or not.
type Cluster struct {
	Name string
	// Dir is the state folder.
	Dir string
}

var namePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// New names a cluster. An empty dir means the usual place.
func New(name, dir string) (*Cluster, error) {
	if !namePattern.MatchString(name) {
		return nil, fmt.Errorf("%q is no cluster name: lower case letters, digits and dashes, at most 32", name)
	}
	if dir == "" {
		dir = filepath.Join("/var/lib/lapstrake-cluster", name)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if filepath.Dir(dir) == "/" {
		return nil, fmt.Errorf("%s is no state folder: it would be removed as a whole", dir)
	}
	return &Cluster{Name: name, Dir: dir}, nil
}

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.Dir}, parts...)...)
}

// Kubeconfig is the file with which clients reach the cluster.
func (c *Cluster) Kubeconfig() string { return c.path("kubeconfig") }

// RegistryCA is the certificate that signed the secure registry's.
func (c *Cluster) RegistryCA() string { return c.path("pki", "registry-ca.crt") }

// RegistryPassword is the file with the secure registry's password.
func (c *Cluster) RegistryPassword() string { return c.path("registry-password") }

// Bin is the folder with kubectl, helm and ctr for this cluster.
func (c *Cluster) Bin() string { return c.path("bin") }

// Log is the log file of one program.
func (c *Cluster) Log(program string) string { return c.path("logs", program+".log") }

// Volumes is the folder that holds the claims' folders.
func (c *Cluster) Volumes() string { return c.path("volumes") }

// Environment is what a shell needs to use the cluster.
func (c *Cluster) Environment() []string {
	return []string{
		"KUBECONFIG=" + c.Kubeconfig(),
		"PATH=" + c.Bin() + ":$PATH",
		"LAPSTRAKE_REGISTRY=" + Registry,
		"LAPSTRAKE_SECURE_REGISTRY=" + SecureRegistry,
		"LAPSTRAKE_REGISTRY_CA=" + c.RegistryCA(),
		"LAPSTRAKE_REGISTRY_USER=" + RegistryUser,
		"LAPSTRAKE_REGISTRY_PASSWORD_FILE=" + c.RegistryPassword(),
		// Under this address pods reach what listens on the host.
		"LAPSTRAKE_HOST_ADDRESS=" + hostAddress,
	}
}

func (c *Cluster) record(program string) string { return c.path("run", program+".json") }

func (c *Cluster) containerdSocket() string { return c.path("containerd", "containerd.sock") }

func (c *Cluster) cgroup() string { return "lapstrake-" + c.Name }

func (c *Cluster) network() host.Network {
	return host.Network{
		Name: c.Name, HostAddress: hostAddress, NodeLink: linkAddress, LinkBits: 30,
		Bridge: "cni0", BridgeAddress: NodeAddress, PodBits: 24,
		Routes: []string{podRange, serviceRange},
	}
}

// Record is what a cluster remembers of itself between two commands.
type Record struct {
	Programs build.Built `json:"programs"`
	// Sysctls are the machine's own settings from before.
	Sysctls map[string]string `json:"sysctls"`
	// Created are folders outside of the state folder that were not there
	// before and that the programs make.
	Created []string `json:"created"`
}

func (c *Cluster) load() (Record, error) {
	var record Record
	text, err := os.ReadFile(c.path("cluster.json"))
	if err != nil {
		return record, err
	}
	return record, json.Unmarshal(text, &record)
}

func (c *Cluster) save(record Record) error {
	text, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return err
	}
	return host.WriteFile(c.path("cluster.json"), append(text, '\n'), 0o644)
}

// Lock keeps two commands from changing the same cluster at once.
func (c *Cluster) Lock(waiting func()) (func(), error) {
	if err := os.MkdirAll(filepath.Dir(c.Dir), 0o711); err != nil {
		return nil, err
	}
	return host.Lock(c.lockFile(), waiting)
}

func (c *Cluster) lockFile() string { return c.Dir + ".lock" }

// Forget removes the lock's file, and the folder above when it is empty then.
// The caller holds the lock.
func (c *Cluster) Forget() error {
	if err := os.Remove(c.lockFile()); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(c.Dir)) // not empty: another cluster is in there
	return nil
}
