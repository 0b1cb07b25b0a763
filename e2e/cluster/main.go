// Command lapstrake-cluster builds and runs a real one-node Kubernetes for demo
// and end-to-end tests.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// command is one subcommand. Its arguments come without its own name.
type command struct {
	usage, about string
	run          func(ctx context.Context, arguments []string) error
}

// order is how the help lists the commands.
var order = []string{
	"build", "up", "down", "status", "env", "kubectl", "helm", "ctr", "logs",
	"images", "layout", "load-image", "stop", "start", "restart", "restart-node", "which",
}

func commands() map[string]command {
	return map[string]command{
		"build":        {"build [COMPONENT...]", "build what the cluster needs into the cache (all of: pause tools charttool kube)", runBuild},
		"up":           {"up [--fresh]", "bring the cluster up, building first what the cache lacks; returns at once when it is up", runUp},
		"down":         {"down", "take the cluster and all its traces away, in whatever state it is", runDown},
		"status":       {"status", "say of every program whether it serves; fails when one does not", runStatus},
		"env":          {"env", "print shell lines that set KUBECONFIG, PATH and the registries' addresses", runEnv},
		"kubectl":      {"kubectl ARGUMENT...", "run kubectl on the cluster", forward("kubectl")},
		"helm":         {"helm ARGUMENT...", "run Helm on the cluster", forward("helm")},
		"ctr":          {"ctr ARGUMENT...", "run containerd's ctr on the node", forward("ctr")},
		"logs":         {"logs PROGRAM", "print a program's log", runLogs},
		"images":       {"images [NAME...]", "put base images (busybox debian golang node python rust) into the plain registry as base/NAME", runImages},
		"layout":       {"layout NAME...", "make base images if need be and print the folders of their OCI layouts; needs no cluster", runLayout},
		"load-image":   {"load-image [--as NAME] TAR", "put an OCI layout (folder or archive) or docker archive into a registry", runLoad},
		"stop":         {"stop [--kill] PROGRAM...", "stop programs and wait until they are gone", runStop},
		"start":        {"start PROGRAM...", "start programs and wait until they serve", runStart},
		"restart":      {"restart [--kill] PROGRAM...", "stop and start programs", runRestart},
		"restart-node": {"restart-node [--kill]", "restart containerd and the kubelet; pods stay", runRestartNode},
		"which":        {"which kubectl|helm|ctr|kube", "build a tool if need be and print its path; needs no cluster", runWhich},
		// Started by `up`; of no use to a person.
		"provisioner": {"", "", runProvisioner},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := dispatch(ctx, os.Args[1:])
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.Is(err, errUsage):
		os.Exit(2)
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "lapstrake-cluster:", err)
		os.Exit(1)
	}
}

// errUsage says that the help was printed in answer to a wrong command line.
var errUsage = errors.New("usage")

func dispatch(ctx context.Context, arguments []string) error {
	all := commands()
	if len(arguments) == 0 {
		help(os.Stderr)
		return errUsage
	}
	switch arguments[0] {
	case "-h", "--help", "help":
		help(os.Stdout)
		return nil
	}
	command, known := all[arguments[0]]
	if !known {
		fmt.Fprintf(os.Stderr, "lapstrake-cluster: there is no command %q\n\n", arguments[0])
		help(os.Stderr)
		return errUsage
	}
	return command.run(ctx, arguments[1:])
}

func help(out *os.File) {
	fmt.Fprint(out, `Builds and runs a real one-node Kubernetes with two registries, for demo and
end-to-end tests. Everything is compiled from pinned sources and kept in a cache.

usage: lapstrake-cluster COMMAND [--name NAME] [--state DIR] [ARGUMENT...]

`)
	all := commands()
	for _, name := range order {
		fmt.Fprintf(out, "  %-28s %s\n", all[name].usage, all[name].about)
	}
	fmt.Fprint(out, `
  --name NAME    which cluster (default: lapstrake)
  --state DIR    its state folder (default: /var/lib/lapstrake-cluster/NAME);
                 every folder above it must let other users pass (mode 0711)
  --source DIR   the e2e/cluster folder (default: found from the working folder)

  LAPSTRAKE_CACHE  where built programs and images are kept
                   (default: /var/cache/lapstrake)

`)
	fmt.Fprintf(out, "Programs: %s\n", programNames())
}
