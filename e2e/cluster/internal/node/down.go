package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"lapstrake.dev/e2e/cluster/internal/host"
)

// Down takes everything away that Up made, however far Up came.
//
// Nothing is asked to end in an orderly way: all state is thrown away with the
// cluster, so the programs, then the shims, then what runs in the pods' cgroup
// are killed, and this one path also clears a cluster that is half dead.
func (c *Cluster) Down(ctx context.Context) error {
	record, err := c.load()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := c.endPrograms(ctx); err != nil {
		return err
	}
	if err := host.RemoveCgroup(ctx, c.cgroup()); err != nil {
		return err
	}
	c.removeShimSockets()
	if err := host.UnmountBelow(c.Dir); err != nil {
		return err
	}
	if err := c.network().Down(ctx); err != nil {
		return err
	}
	for name, value := range record.Sysctls {
		if err := host.SetSysctl(name, value); err != nil {
			return fmt.Errorf("put kernel setting %s back to %s: %w", name, value, err)
		}
	}
	c.removeNotes()
	for _, folder := range record.Created {
		removeEmpty(folder)
	}
	return os.RemoveAll(c.Dir)
}

// endPrograms kills the cluster's processes: those that are on record and any
// other that was started for this state folder.
func (c *Cluster) endPrograms(ctx context.Context) error {
	var processes []host.Process
	for _, name := range Programs {
		if process, err := host.Recorded(c.record(name)); err == nil {
			processes = append(processes, process)
		}
	}
	processes = append(processes, host.Search(c.ours)...)
	for _, process := range processes {
		if err := process.Signal(syscall.SIGKILL); err != nil {
			return err
		}
	}
	for _, process := range processes {
		if err := process.Stop(ctx, syscall.SIGKILL, 0); err != nil {
			return err
		}
	}
	return nil
}

// ours recognizes a program or a shim of this cluster by its command line: the
// binary is one of ours, and an argument lies in the state folder.
func (c *Cluster) ours(arguments []string) bool {
	names := map[string]bool{"kube": true, "containerd": true, "containerd-shim-runc-v2": true, "registry": true, "runc": true}
	if arguments[0] == c.path("bin", "lapstrake-cluster") {
		return len(arguments) > 1 && arguments[1] == "provisioner"
	}
	if !names[filepath.Base(arguments[0])] {
		return false
	}
	for _, argument := range arguments[1:] {
		if _, value, found := strings.Cut(argument, "="); found && strings.HasPrefix(argument, "--") {
			argument = value
		}
		if strings.HasPrefix(argument, c.Dir+"/") {
			return true
		}
	}
	return false
}

// removeShimSockets removes the sockets that killed shims leave in a folder
// which other containerds on the machine share.
func (c *Cluster) removeShimSockets() {
	files, _ := filepath.Glob(c.path("containerd", "state", "io.containerd.runtime.v2.task", "*", "*", "address"))
	more, _ := filepath.Glob(c.path("containerd", "state", "io.containerd.runtime.v2.task", "*", "*", "bootstrap.json"))
	for _, file := range append(files, more...) {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if _, rest, found := strings.Cut(string(text), "unix://"); found {
			end := strings.IndexAny(rest, "\"\n ")
			if end < 0 {
				end = len(rest)
			}
			os.Remove(rest[:end])
		}
	}
}

// removeNotes removes what the programs keep in fixed places: links to pod logs
// and CNI's memory of each pod's address.
func (c *Cluster) removeNotes() {
	notes, _ := filepath.Glob("/var/lib/cni/results/*")
	for _, note := range notes {
		// Another runtime's pods have their network namespaces elsewhere.
		if text, err := os.ReadFile(note); err == nil && strings.Contains(string(text), `"netns":"`+c.Dir+"/") {
			os.Remove(note)
		}
	}
	links, _ := filepath.Glob("/var/log/containers/*.log")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, c.Dir+"/") {
			os.Remove(link)
		}
	}
}

// removeEmpty removes a folder tree unless it holds a file. Sockets count as
// nothing: nobody answers there any more.
func removeEmpty(folder string) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return
	}
	for _, entry := range entries {
		path := filepath.Join(folder, entry.Name())
		switch {
		case entry.IsDir():
			removeEmpty(path)
		case entry.Type()&fs.ModeSocket != 0:
			os.Remove(path)
		}
	}
	_ = os.Remove(folder) // not empty: somebody uses it
}
