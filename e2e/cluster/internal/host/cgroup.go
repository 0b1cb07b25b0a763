package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// CgroupHierarchies lists the roots of the machine's cgroup trees: one on a
// cgroup v2 machine, one for each controller on v1.
func CgroupHierarchies() ([]string, error) {
	if Exists(filepath.Join(cgroupRoot, "cgroup.controllers")) {
		return []string{cgroupRoot}, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, entry := range entries {
		path := filepath.Join(cgroupRoot, entry.Name())
		// Links such as cpu,cpuacct lead to a hierarchy that is listed anyhow.
		if entry.IsDir() && Exists(filepath.Join(path, "cgroup.procs")) {
			roots = append(roots, path)
		}
	}
	return roots, nil
}

// MakeCgroup creates a cgroup of this name in every hierarchy. Everything that
// runs in pods lives below it, so that it can be found and ended.
func MakeCgroup(name string) error {
	roots, err := CgroupHierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if root == cgroupRoot {
			if err := delegate(root); err != nil {
				return err
			}
		}
		group := filepath.Join(root, name)
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A new cpuset has no processors and no memory, and takes no process.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(group, file), value, 0); err != nil {
				return fmt.Errorf("set %s of %s: %w", file, group, err)
			}
		}
	}
	return nil
}

// delegate lets the children of a cgroup v2 folder use all of its controllers.
func delegate(root string) error {
	controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(controllers)) {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return fmt.Errorf("delegate cgroup controller %s: %w", controller, err)
		}
	}
	return nil
}

// RemoveCgroup ends every process in the cgroups of this name and removes them.
func RemoveCgroup(ctx context.Context, name string) error {
	roots, err := CgroupHierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		group := filepath.Join(root, name)
		if !Exists(group) {
			continue
		}
		err := Until(ctx, 20*time.Second, "empty "+group, func(context.Context) error {
			return emptyCgroup(group)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// emptyCgroup kills what is in a cgroup tree and removes the tree. It fails
// while processes are still on their way out.
func emptyCgroup(group string) error {
	var groups []string
	err := filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			groups = append(groups, path)
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, path := range groups {
		text, _ := os.ReadFile(filepath.Join(path, "cgroup.procs")) // gone meanwhile is fine
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // ended meanwhile is fine
			}
		}
		// A process that is frozen takes no signal.
		_ = os.WriteFile(filepath.Join(path, "freezer.state"), []byte("THAWED"), 0)
		_ = os.WriteFile(filepath.Join(path, "cgroup.freeze"), []byte("0"), 0)
	}
	for i := len(groups) - 1; i >= 0; i-- {
		if err := unix.Rmdir(groups[i]); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s: %w", groups[i], err)
		}
	}
	return nil
}
