package host

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestStatIsReadPastANameWithParentheses(t *testing.T) {
	line := "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10 18446744073709551615"
	state, started, err := parseStat([]byte(line))
	if err != nil || state != 'S' || started != 98765 {
		t.Errorf("got %c %d %v", state, started, err)
	}
	for _, broken := range []string{"", "42 (a", "42 (a) S 1"} {
		if _, _, err := parseStat([]byte(broken)); err == nil {
			t.Errorf("%q was read", broken)
		}
	}
}

func TestMountsBelowAFolderAreFoundAndItsNeighboursAreNot(t *testing.T) {
	table := strings.Join([]string{
		"1 0 8:1 / / rw - ext4 /dev/a rw",
		"2 1 8:1 / /state/one rw - ext4 /dev/a rw",
		"3 1 8:1 / /state/one/a\\040b rw - tmpfs none rw",
		"4 1 8:1 / /state/one-more rw - tmpfs none rw",
	}, "\n")
	got := mountsBelow(table, "/state/one")
	if want := []string{"/state/one", "/state/one/a b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestALockIsHeldUntilItIsLetGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(path, func() { t.Error("nobody has it") })
	if err != nil {
		t.Fatal(err)
	}
	waiting, taken := make(chan struct{}), make(chan error, 1)
	go func() {
		second, err := Lock(path, func() { close(waiting) })
		if err == nil {
			second()
		}
		taken <- err
	}()
	<-waiting
	// The holder may remove the file, as `down` does.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	if !Exists(path) {
		t.Error("the second holder has a lock on a file that nobody else can see")
	}
}

func TestAProcessIsToldFromALaterOneWithItsID(t *testing.T) {
	command := exec.Command("sleep", "60")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	process, err := Find(command.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !process.Alive() {
		t.Error("a running process is not alive")
	}
	if other := (Process{PID: process.PID, Started: process.Started + 1}); other.Alive() {
		t.Error("a process of another start time counts as the same")
	}
	// Not reaped yet: a zombie counts as gone.
	if err := process.Stop(context.Background(), syscall.SIGTERM, 10*time.Second); err != nil {
		t.Error(err)
	}
	if process.Alive() {
		t.Error("a stopped process is alive")
	}
	_ = command.Wait()
}

func TestUntilSaysWhatWasLastWrongAndStopsAtAFinalError(t *testing.T) {
	cause := errors.New("the cause")
	err := Until(context.Background(), time.Millisecond, "thing to serve", func(context.Context) error { return cause })
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), "thing to serve") {
		t.Errorf("got %v", err)
	}
	calls := 0
	err = Until(context.Background(), time.Hour, "thing", func(context.Context) error { calls++; return Final{cause} })
	if !errors.Is(err, cause) || calls != 1 {
		t.Errorf("got %v after %d calls", err, calls)
	}
}

func TestAStateFolderThatOthersCannotPassIsRefusedByName(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(parent, 0o700); err != nil {
		t.Fatal(err)
	}
	err := MakeReachable(filepath.Join(parent, "state"))
	if err == nil || !strings.Contains(err.Error(), "chmod a+x") {
		t.Errorf("got %v", err)
	}
}

func TestInterfaceNamesFitTheKernel(t *testing.T) {
	n := Network{Name: strings.Repeat("x", 32)}
	if name := n.HostLink(); len(name) > 15 {
		t.Errorf("%q has %d characters", name, len(name))
	}
}
