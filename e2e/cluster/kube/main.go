// Command kube is every program of a small Kubernetes control plane and node in
// one binary: the first argument picks the program, the rest are its own
// arguments. Under the name of a program (by a link) it is that program.
//
// One binary instead of seven saves most of the link time and nine tenths of
// the disk space, because the programs share nearly all of their packages.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	_ "time/tzdata" // CronJob time zones

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl's login plugins
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // version metric
	"k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// programs maps a first argument to what runs for it. None of them returns a
// value: each one ends the process with its own exit code.
var programs = map[string]func(){
	"kube-apiserver":          command(apiserver.NewAPIServerCommand),
	"kube-controller-manager": command(controllermanager.NewControllerManagerCommand),
	"kube-scheduler":          command(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kubelet":                 command(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	"kube-proxy":              command(proxy.NewProxyCommand),
	"kubectl":                 kubectl,
	"etcd":                    func() { etcdmain.Main(os.Args) },
}

func main() {
	if run, known := programs[filepath.Base(os.Args[0])]; known {
		run()
	}
	if len(os.Args) < 2 {
		usage()
	}
	run, known := programs[os.Args[1]]
	if !known {
		usage()
	}
	// Each program reads os.Args itself and must see its own name first.
	os.Args = os.Args[1:]
	run()
}

func command(build func() *cobra.Command) func() {
	return func() { os.Exit(cli.Run(build())) }
}

func kubectl() {
	// Verbosity has to be known before the command tree is built, because
	// kubectl already logs while it looks for plugins.
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		cmdutil.CheckErr(err)
	}
}

func usage() {
	names := make([]string, 0, len(programs))
	for name := range programs {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Fprintf(os.Stderr, "usage: kube PROGRAM [ARGUMENT...]\nprograms: %s\n", strings.Join(names, ", "))
	os.Exit(2)
}
