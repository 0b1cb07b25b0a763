package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"lapstrake.dev/e2e/cluster/internal/build"
	"lapstrake.dev/e2e/cluster/internal/host"
)

// stopPatience is how long a program may take to end in an orderly way.
const stopPatience = 8 * time.Second

// Stop ends programs and returns when they are gone, in the given order.
func (c *Cluster) Stop(ctx context.Context, signal syscall.Signal, names ...string) error {
	if err := known(names); err != nil {
		return err
	}
	for _, name := range names {
		process, err := host.Recorded(c.record(name))
		if err != nil {
			return fmt.Errorf("cluster %s is not up: %s was never started", c.Name, name)
		}
		if err := process.Stop(ctx, signal, stopPatience); err != nil {
			return fmt.Errorf("stop %s: %w", name, err)
		}
	}
	return nil
}

// Start starts programs that do not run and returns when they serve.
func (c *Cluster) Start(ctx context.Context, names ...string) error {
	if err := known(names); err != nil {
		return err
	}
	record, err := c.load()
	if err != nil {
		return fmt.Errorf("cluster %s is not there: %w", c.Name, err)
	}
	programs := c.programs(record.Programs)
	// One after the other: a kubelet that finds no containerd ends.
	for _, name := range names {
		if err := c.serve(ctx, record.Programs, programs[name]); err != nil {
			return err
		}
		if name == "kubelet" {
			if err := host.Until(ctx, readyWithin, "the node's report", c.nodeBack); err != nil {
				return err
			}
		}
	}
	return nil
}

// serve starts a program unless it runs, and waits until it serves.
func (c *Cluster) serve(ctx context.Context, built build.Built, p program) error {
	for attempt := 1; ; attempt++ {
		if c.running(p.name)(ctx) != nil {
			if err := c.launch(built, p); err != nil {
				return err
			}
		}
		err := c.await(ctx, p)
		// A killed process is gone before the last of its threads, which may hold its
		// sockets for a moment longer.
		if err == nil || attempt == 5 || !strings.Contains(err.Error(), "address already in use") {
			return err
		}
	}
}

// Restart stops programs, the last named first, and starts them again.
func (c *Cluster) Restart(ctx context.Context, signal syscall.Signal, names ...string) error {
	backwards := slices.Clone(names)
	slices.Reverse(backwards)
	if err := c.Stop(ctx, signal, backwards...); err != nil {
		return err
	}
	return c.Start(ctx, names...)
}

func known(names []string) error {
	for _, name := range names {
		if !slices.Contains(Programs, name) {
			return fmt.Errorf("there is no program %q: one of %s", name, strings.Join(Programs, ", "))
		}
	}
	return nil
}

// Health tells of each program whether it serves; "" means well.
func (c *Cluster) Health(ctx context.Context) (map[string]string, error) {
	record, err := c.load()
	if err != nil {
		return nil, fmt.Errorf("cluster %s is not there", c.Name)
	}
	health := map[string]string{}
	for name, program := range c.programs(record.Programs) {
		health[name] = ""
		if err := c.running(name)(ctx); err != nil {
			health[name] = err.Error()
		} else if err := program.ready(ctx); err != nil {
			health[name] = err.Error()
		}
	}
	return health, nil
}

// Programs' binaries of a cluster that is there, for commands that call them.
func (c *Cluster) Record() (Record, error) {
	record, err := c.load()
	if err != nil {
		return record, fmt.Errorf("cluster %s is not up: run `lapstrake-cluster up`", c.Name)
	}
	return record, nil
}
