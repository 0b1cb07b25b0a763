package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process names a running program for good: a process id alone may belong to
// another program a moment later.
type Process struct {
	PID int `json:"pid"`
	// Started is the kernel's start time in clock ticks since boot.
	Started uint64 `json:"started"`
}

// Find looks a process up by its id.
func Find(pid int) (Process, error) {
	state, started, err := stat(pid)
	if err != nil {
		return Process{}, err
	}
	if state == 'Z' || state == 'X' {
		return Process{}, fmt.Errorf("process %d has ended", pid)
	}
	return Process{PID: pid, Started: started}, nil
}

// Alive tells whether this very process still runs.
func (p Process) Alive() bool {
	now, err := Find(p.PID)
	return err == nil && now == p
}

// Signal sends a signal unless the process has ended.
func (p Process) Signal(signal syscall.Signal) error {
	if !p.Alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// Stop asks a process to end, makes it end when the time is over, and returns
// when it has.
func (p Process) Stop(ctx context.Context, first syscall.Signal, patience time.Duration) error {
	if err := p.Signal(first); err != nil {
		return err
	}
	gone := func(context.Context) error {
		if p.Alive() {
			return fmt.Errorf("process %d is still there", p.PID)
		}
		return nil
	}
	if first != syscall.SIGKILL {
		if Until(ctx, patience, "stop", gone) == nil {
			return nil
		}
		if err := p.Signal(syscall.SIGKILL); err != nil {
			return err
		}
	}
	return Until(ctx, 20*time.Second, "kill", gone)
}

// stat reads state and start time. The program's name may hold blanks and
// parentheses, so fields are counted from the last parenthesis.
func stat(pid int) (byte, uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	return parseStat(text)
}

func parseStat(text []byte) (byte, uint64, error) {
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("process table entry %q has no name", text)
	}
	fields := strings.Fields(string(text[end+1:]))
	// The state is field 3 and the start time field 22 of the whole line.
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("process table entry %q is too short", text)
	}
	started, err := strconv.ParseUint(fields[19], 10, 64)
	return fields[0][0], started, err
}

// Daemon is a program that outlives the one that starts it.
type Daemon struct {
	// Record is the file that remembers the process.
	Record string
	// Log takes all that it prints.
	Log string
	// Network is the network namespace's file, or "".
	Network string
	Program string
	Args    []string
	Env     []string
}

// Start runs the daemon in a session of its own and remembers it.
func (d Daemon) Start() (Process, error) {
	log, err := os.OpenFile(d.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return Process{}, err
	}
	defer log.Close()
	program, arguments := d.Program, d.Args
	if d.Network != "" {
		// Unlike `ip netns exec`, this keeps the machine's own /sys with its cgroups.
		program, arguments = "nsenter", append([]string{"--net=" + d.Network, "--", d.Program}, d.Args...)
	}
	command := exec.Command(program, arguments...)
	command.Stdout, command.Stderr = log, log
	command.Env = d.Env
	command.Dir = "/"
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return Process{}, err
	}
	process, err := Find(command.Process.Pid)
	if err != nil {
		return Process{}, fmt.Errorf("%s ended at once, see %s", filepath.Base(d.Program), d.Log)
	}
	go func() { _ = command.Wait() }() // only so that its end leaves no zombie
	text, err := json.Marshal(process)
	if err != nil {
		return Process{}, err
	}
	return process, WriteFile(d.Record, text, 0o644)
}

// Recorded reads what Start remembered.
func Recorded(record string) (Process, error) {
	var process Process
	text, err := os.ReadFile(record)
	if err != nil {
		return process, err
	}
	return process, json.Unmarshal(text, &process)
}

// Search lists processes by what their command line is.
func Search(match func(arguments []string) bool) []Process {
	var found []Process
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil || len(line) == 0 {
			continue
		}
		arguments := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
		if !match(arguments) {
			continue
		}
		if process, err := Find(pid); err == nil {
			found = append(found, process)
		}
	}
	return found
}

// Tail gives the last lines of a log.
func Tail(path string, lines int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
