// Package host does to the machine what a node needs: programs, namespaces,
// mounts, cgroups and kernel settings, each with a way to undo it.
//
// Never: ends a process that it cannot prove to be the cluster's own, or
// removes what was there before.
package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Output runs a program and gives what it printed; an error carries what the
// program said.
func Output(ctx context.Context, program string, arguments ...string) (string, error) {
	var stdout, stderr strings.Builder
	command := exec.CommandContext(ctx, program, arguments...)
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(arguments, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Run is Output for a program whose words nobody needs.
func Run(ctx context.Context, program string, arguments ...string) error {
	_, err := Output(ctx, program, arguments...)
	return err
}

// Exists tells whether there is anything at a path.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// WriteFile puts a whole file in place at once, so that a reader never sees a
// part of it.
func WriteFile(path string, text []byte, mode os.FileMode) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, text, mode); err != nil {
		return err
	}
	// The umask may have taken bits away that another user needs.
	if err := os.Chmod(temporary, mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// Lock takes an exclusive lock on a file and gives the function that lets go.
// waiting is called when somebody else has it. A holder may remove the file.
func Lock(path string, waiting func()) (func(), error) {
	for {
		file, err := lockOnce(path, waiting)
		if err != nil {
			return nil, err
		}
		// A lock on a file that was removed meanwhile keeps nobody out.
		locked, err := file.Stat()
		if err != nil {
			file.Close()
			return nil, err
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(locked, now) {
			return func() { file.Close() }, nil
		}
		file.Close()
	}
}

func lockOnce(path string, waiting func()) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		waiting()
		for {
			err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return file, nil
}

// pollEvery is how often a condition outside of this process is looked at.
const pollEvery = 50 * time.Millisecond

// Until waits for a condition of the world. It gives up when the time is over,
// when the context ends, or when the condition itself gives a Final error, and
// says what was last wrong.
func Until(ctx context.Context, limit time.Duration, what string, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		var final Final
		if errors.As(err, &final) {
			return final.Err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not after %s: %w", what, limit, err)
		case <-ticker.C:
		}
	}
}

// Final wraps an error that waiting cannot heal.
type Final struct{ Err error }

func (f Final) Error() string { return f.Err.Error() }

// MakeReachable creates a folder and checks that users other than root can pass
// through every folder above it, as pods in user namespaces must.
func MakeReachable(path string) error {
	if err := os.MkdirAll(path, 0o711); err != nil {
		return err
	}
	for folder := path; ; folder = filepath.Dir(folder) {
		info, err := os.Stat(folder)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o111 != 0o111 {
			if folder != path {
				return fmt.Errorf("pods in user namespaces cannot pass through %s (mode %04o): choose another --state, or chmod a+x %s", folder, info.Mode().Perm(), folder)
			}
			if err := os.Chmod(path, 0o711); err != nil {
				return err
			}
		}
		if folder == filepath.Dir(folder) {
			return nil
		}
	}
}
