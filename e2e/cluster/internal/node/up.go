package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"lapstrake.dev/e2e/cluster/internal/build"
	"lapstrake.dev/e2e/cluster/internal/host"
	"lapstrake.dev/e2e/cluster/internal/images"
	"lapstrake.dev/e2e/cluster/internal/provisioner"
)

// sharedFolders lie at fixed places outside of the state folder: the programs
// make them, and Down removes those that were not there before.
var sharedFolders = []string{
	"/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods",
	"/var/run/kubernetes", "/var/lib/kube-proxy", "/opt/containerd", "/etc/cni", "/opt/cni", "/etc/containerd",
}

// sharedSysctls are settings of the whole machine that the cluster changes.
var sharedSysctls = []string{
	"net.ipv4.ip_forward", "vm.overcommit_memory", "kernel.panic", "kernel.panic_on_oops",
	"kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes", "vm.panic_on_oom",
}

// UpOptions is what Up needs from outside.
type UpOptions struct {
	Programs build.Built
	// Self is this tool's own binary, which serves as volume provisioner.
	Self string
	// Images puts the base images into the registry.
	Images func(context.Context) error
	Out    io.Writer
}

// Up brings the cluster up, or returns at once when it is.
func (c *Cluster) Up(ctx context.Context, options UpOptions) error {
	if c.healthy(ctx) == nil {
		if record, err := c.load(); err == nil && record.Programs != options.Programs {
			fmt.Fprintf(options.Out, "cluster %s is up, with programs from other sources: `down` and `up` bring the new ones\n", c.Name)
		} else {
			fmt.Fprintf(options.Out, "cluster %s is up\n", c.Name)
		}
		return options.Images(ctx)
	}
	if host.Exists(c.Dir) {
		fmt.Fprintf(options.Out, "cluster %s is there but not well: removing what is left of it\n", c.Name)
		if err := c.Down(ctx); err != nil {
			return err
		}
	}
	if err := c.network().Free(ctx); err != nil {
		return err
	}
	if err := host.MakeReachable(c.Dir); err != nil {
		return err
	}
	started := time.Now()
	up := &bringUp{Cluster: c, options: options, started: started, programs: c.programs(options.Programs)}
	if err := up.run(ctx); err != nil {
		return fmt.Errorf("cluster %s: %w (logs are in %s)", c.Name, err, c.path("logs"))
	}
	fmt.Fprintf(options.Out, "cluster %s is up after %.1f s\n", c.Name, time.Since(started).Seconds())
	return nil
}

// bringUp is one run of Up.
type bringUp struct {
	*Cluster
	options  UpOptions
	programs map[string]program
	started  time.Time
	print    sync.Mutex
}

// phase does one part and says how long it took and when it was over.
func (u *bringUp) phase(what string, do func() error) error {
	began := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	u.print.Lock()
	defer u.print.Unlock()
	fmt.Fprintf(u.options.Out, "  %5.1f s  %s (%.1f s)\n", time.Since(u.started).Seconds(), what, time.Since(began).Seconds())
	return nil
}

func (u *bringUp) run(ctx context.Context) error {
	if err := u.phase("folders, certificates, settings", u.prepare); err != nil {
		return err
	}
	if err := u.phase("network namespace", func() error { return u.network().Up(ctx) }); err != nil {
		return err
	}
	for _, name := range []string{"etcd", "containerd", "registry", "registry-tls"} {
		if err := u.launch(u.options.Programs, u.programs[name]); err != nil {
			return err
		}
	}
	// The image store and the registries fill while the control plane starts.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	runtime := background(func() error {
		return u.phase("containerd and the pause image", func() error { return u.containerRuntime(ctx) })
	})
	registries := background(func() error { return u.registries(ctx) })
	if err := u.controlPlane(ctx, runtime); err != nil {
		return err
	}
	return <-registries
}

func background(do func() error) <-chan error {
	result := make(chan error, 1)
	go func() { result <- do() }()
	return result
}

// prepare makes everything that is only files.
func (u *bringUp) prepare() error {
	record := Record{Programs: u.options.Programs, Sysctls: host.Sysctls(sharedSysctls...)}
	for _, folder := range sharedFolders {
		if !host.Exists(folder) {
			record.Created = append(record.Created, folder)
		}
	}
	// First of all, so that Down knows what to undo.
	if err := u.save(record); err != nil {
		return err
	}
	for folder, mode := range map[string]os.FileMode{
		"pki": 0o711, "config": 0o711, "bin": 0o755, "run": 0o755, "logs": 0o755, "pod-logs": 0o755,
		"containerd": 0o711, "containerd/root": 0o711, "containerd/state": 0o711,
		"kubelet": 0o711, "volumes": 0o711, "registry": 0o755, "registry-tls": 0o755,
	} {
		if err := os.MkdirAll(u.path(folder), mode); err != nil {
			return err
		}
		if err := os.Chmod(u.path(folder), mode); err != nil {
			return err
		}
	}
	if err := u.writePKI(); err != nil {
		return err
	}
	if err := u.writeConfig(u.options.Programs); err != nil {
		return err
	}
	if err := u.writeBin(); err != nil {
		return err
	}
	return host.MakeCgroup(u.cgroup())
}

// writeBin makes the folder of commands that act on this cluster.
func (u *bringUp) writeBin() error {
	kubeconfig := fmt.Sprintf("export KUBECONFIG=\"${KUBECONFIG:-%s}\"\n", u.Kubeconfig())
	for name, text := range map[string]string{
		"kubectl": kubeconfig + fmt.Sprintf("exec %q kubectl \"$@\"\n", u.options.Programs.Kube),
		"helm":    kubeconfig + fmt.Sprintf("exec %q \"$@\"\n", u.options.Programs.Helm),
		"ctr": fmt.Sprintf("export CONTAINERD_ADDRESS=%q CONTAINERD_NAMESPACE=k8s.io\nexec %q \"$@\"\n",
			u.containerdSocket(), filepath.Join(u.options.Programs.Tools, "ctr")),
	} {
		if err := host.WriteFile(u.path("bin", name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			return err
		}
	}
	// A copy, since the original may be rebuilt while the cluster runs.
	self, err := os.ReadFile(u.options.Self)
	if err != nil {
		return err
	}
	return host.WriteFile(u.path("bin", "lapstrake-cluster"), self, 0o755)
}

func (u *bringUp) containerRuntime(ctx context.Context) error {
	if err := u.await(ctx, u.programs["containerd"]); err != nil {
		return err
	}
	archive := u.path("pause.tar")
	if err := images.WritePauseArchive(u.options.Programs.Pause, PauseImage, archive); err != nil {
		return err
	}
	defer os.Remove(archive)
	return host.Run(ctx, u.path("bin", "ctr"), "images", "import", archive)
}

func (u *bringUp) registries(ctx context.Context) error {
	return u.phase("registries and base images", func() error {
		for _, name := range []string{"registry", "registry-tls"} {
			if err := u.await(ctx, u.programs[name]); err != nil {
				return err
			}
		}
		return u.options.Images(ctx)
	})
}

func (u *bringUp) controlPlane(ctx context.Context, runtime <-chan error) error {
	start := func(names ...string) error {
		for _, name := range names {
			if err := u.launch(u.options.Programs, u.programs[name]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := u.phase("etcd", func() error { return u.await(ctx, u.programs["etcd"]) }); err != nil {
		return err
	}
	if err := start("kube-apiserver"); err != nil {
		return err
	}
	if err := u.phase("API server", func() error { return u.await(ctx, u.programs["kube-apiserver"]) }); err != nil {
		return err
	}
	if err := start("kube-controller-manager", "kube-scheduler"); err != nil {
		return err
	}
	if err := <-runtime; err != nil {
		return err
	}
	if err := start("kubelet", "kube-proxy", "provisioner"); err != nil {
		return err
	}
	if err := u.phase("storage classes", func() error { return u.storageClasses(ctx) }); err != nil {
		return err
	}
	if err := u.phase("node ready", func() error { return u.await(ctx, u.programs["kubelet"]) }); err != nil {
		return err
	}
	return u.phase("controllers, scheduler, services", func() error {
		for _, name := range []string{"kube-controller-manager", "kube-scheduler", "kube-proxy", "provisioner"} {
			if err := u.await(ctx, u.programs[name]); err != nil {
				return err
			}
		}
		return u.serviceAccount(ctx)
	})
}

func (c *Cluster) storageClasses(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	for name, class := range provisioner.Classes() {
		if err := client.Apply(ctx, "/apis/storage.k8s.io/v1/storageclasses/"+name, class); err != nil {
			return err
		}
	}
	return nil
}

// serviceAccount waits for the account without which no pod can be created.
func (c *Cluster) serviceAccount(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	return host.Until(ctx, readyWithin, "the default ServiceAccount", func(ctx context.Context) error {
		return client.Do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", nil, nil)
	})
}

// healthy tells whether the whole cluster runs and serves.
func (c *Cluster) healthy(ctx context.Context) error {
	record, err := c.load()
	if err != nil {
		return fmt.Errorf("cluster %s is not there", c.Name)
	}
	programs := c.programs(record.Programs)
	var wrong []error
	for _, name := range Programs {
		if err := c.running(name)(ctx); err != nil {
			wrong = append(wrong, err)
		} else if err := programs[name].ready(ctx); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", name, err))
		}
	}
	if len(wrong) == 0 {
		if err := c.serviceAccountThere(ctx); err != nil {
			wrong = append(wrong, err)
		}
	}
	return errors.Join(wrong...)
}

func (c *Cluster) serviceAccountThere(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	return client.Do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", nil, nil)
}
