package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"lapstrake.dev/e2e/cluster/internal/build"
	"lapstrake.dev/e2e/cluster/internal/host"
	"lapstrake.dev/e2e/cluster/internal/images"
	"lapstrake.dev/e2e/cluster/internal/node"
	"lapstrake.dev/e2e/cluster/internal/provisioner"
)

// usual are the images that every cluster has from the start.
var usual = []string{"busybox", "debian"}

// settings are the flags that every command has.
type settings struct {
	*flag.FlagSet
	name, state, source string
}

func flags(command string) *settings {
	s := &settings{FlagSet: flag.NewFlagSet(command, flag.ContinueOnError)}
	s.StringVar(&s.name, "name", "lapstrake", "which cluster")
	s.StringVar(&s.state, "state", "", "state folder (default /var/lib/lapstrake-cluster/NAME)")
	s.StringVar(&s.source, "source", "", "the e2e/cluster folder (default: found from the working folder)")
	return s
}

// parse reads the flags and names the cluster.
func (s *settings) parse(arguments []string) (*node.Cluster, error) {
	if err := s.Parse(arguments); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(0)
		}
		return nil, errUsage
	}
	return node.New(s.name, s.state)
}

func cache() string {
	if folder := os.Getenv("LAPSTRAKE_CACHE"); folder != "" {
		return folder
	}
	return "/var/cache/lapstrake"
}

// sources finds the e2e/cluster folder: as told, above the working folder, or
// above this program.
func (s *settings) sources() (string, error) {
	if s.source != "" {
		return filepath.Abs(s.source)
	}
	var starts []string
	if folder, err := os.Getwd(); err == nil {
		starts = append(starts, folder)
	}
	if program, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(program))
	}
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		starts = append(starts, filepath.Dir(file))
	}
	for _, start := range starts {
		for folder := start; ; folder = filepath.Dir(folder) {
			for _, candidate := range []string{folder, filepath.Join(folder, "e2e", "cluster")} {
				if host.Exists(filepath.Join(candidate, "kube", "go.mod")) && host.Exists(filepath.Join(candidate, "tools", "go.mod")) {
					return candidate, nil
				}
			}
			if folder == filepath.Dir(folder) {
				break
			}
		}
	}
	return "", errors.New("the sources in e2e/cluster were not found: run inside the repository, or say --source DIR")
}

// built checks the machine and builds what the cache lacks.
func (s *settings) built(ctx context.Context, out io.Writer, only ...string) (build.Built, error) {
	source, err := s.sources()
	if err != nil {
		return build.Built{}, err
	}
	if missing := build.Prerequisites(ctx, source); len(missing) > 0 {
		for _, m := range missing {
			fmt.Fprintln(os.Stderr, m)
		}
		return build.Built{}, fmt.Errorf("this machine lacks %d of the things that a cluster needs, see above", len(missing))
	}
	builder := build.Builder{Source: source, Cache: cache(), Out: out}
	return builder.Build(ctx, only...)
}

func runBuild(ctx context.Context, arguments []string) error {
	s := flags("build")
	if _, err := s.parse(arguments); err != nil {
		return err
	}
	built, err := s.built(ctx, os.Stdout, s.Args()...)
	if err != nil {
		return err
	}
	if s.NArg() == 0 {
		if err := images.Prepare(ctx, cache(), os.Stdout, usual...); err != nil {
			return err
		}
		fmt.Printf("all is built: %s\n", strings.Join([]string{built.Kube, built.Tools, built.Helm, built.Pause}, " "))
	}
	return nil
}

func lock(c *node.Cluster) (func(), error) {
	return c.Lock(func() { fmt.Println("waiting for another command on this cluster") })
}

func runUp(ctx context.Context, arguments []string) error {
	s := flags("up")
	fresh := s.Bool("fresh", false, "take down first what is up")
	cluster, err := s.parse(arguments)
	if err != nil {
		return err
	}
	// Not Helm: the cluster itself does without.
	built, err := s.built(ctx, os.Stdout, "pause", "tools", "kube")
	if err != nil {
		return err
	}
	// Before the programs start: making an image is no time to measure.
	if err := images.Prepare(ctx, cache(), os.Stdout, usual...); err != nil {
		return err
	}
	unlock, err := lock(cluster)
	if err != nil {
		return err
	}
	defer unlock()
	if *fresh {
		if err := cluster.Down(ctx); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return cluster.Up(ctx, node.UpOptions{
		Programs: built, Self: self, Out: os.Stdout,
		Images: func(ctx context.Context) error {
			return images.Ensure(ctx, cache(), node.Registry, os.Stdout, usual...)
		},
	})
}

func runDown(ctx context.Context, arguments []string) error {
	s := flags("down")
	cluster, err := s.parse(arguments)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("down must run as root")
	}
	unlock, err := lock(cluster)
	if err != nil {
		return err
	}
	defer unlock()
	if err := cluster.Down(ctx); err != nil {
		return err
	}
	fmt.Printf("cluster %s is gone\n", cluster.Name)
	return cluster.Forget()
}

func runStatus(ctx context.Context, arguments []string) error {
	s := flags("status")
	cluster, err := s.parse(arguments)
	if err != nil {
		return err
	}
	health, err := cluster.Health(ctx)
	if err != nil {
		return err
	}
	bad := 0
	for _, name := range node.Programs {
		word := "ok"
		if health[name] != "" {
			bad++
			word = health[name]
		}
		fmt.Printf("%-24s %s\n", name, word)
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d programs do not serve", bad, len(health))
	}
	return nil
}

func runEnv(_ context.Context, arguments []string) error {
	s := flags("env")
	cluster, err := s.parse(arguments)
	if err != nil {
		return err
	}
	if _, err := cluster.Record(); err != nil {
		return err
	}
	for _, variable := range cluster.Environment() {
		fmt.Printf("export %s\n", variable)
	}
	return nil
}

// forward runs a tool on the cluster in place of this process.
func forward(tool string) func(context.Context, []string) error {
	return func(ctx context.Context, arguments []string) error {
		own, rest := ownFlags(arguments)
		s := flags(tool)
		cluster, err := s.parse(own)
		if err != nil {
			return err
		}
		record, err := cluster.Record()
		if err != nil {
			return err
		}
		path := filepath.Join(cluster.Bin(), tool)
		if tool == "helm" && !host.Exists(record.Programs.Helm) {
			if _, err := s.built(ctx, os.Stderr, "charttool"); err != nil {
				return err
			}
		}
		environment := append(os.Environ(), "KUBECONFIG="+cluster.Kubeconfig())
		return syscall.Exec(path, append([]string{tool}, rest...), environment)
	}
}

// ownFlags splits this tool's own flags, which come first, from those of the
// tool that is called.
func ownFlags(arguments []string) (own, rest []string) {
	rest = arguments
	for len(rest) > 0 {
		name, _, joined := strings.Cut(rest[0], "=")
		if name != "--name" && name != "--state" {
			break
		}
		count := 2
		if joined || len(rest) == 1 {
			count = 1
		}
		own, rest = append(own, rest[:count]...), rest[count:]
	}
	return own, rest
}

func runLogs(_ context.Context, arguments []string) error {
	s := flags("logs")
	cluster, err := s.parse(arguments)
	if err != nil {
		return err
	}
	if s.NArg() != 1 || !slices.Contains(node.Programs, s.Arg(0)) {
		return fmt.Errorf("say which program: one of %s", programNames())
	}
	file, err := os.Open(cluster.Log(s.Arg(0)))
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(os.Stdout, file)
	return err
}

func runImages(ctx context.Context, arguments []string) error {
	s := flags("images")
	cluster, err := s.parse(arguments)
	if err != nil {
		return err
	}
	if _, err := cluster.Record(); err != nil {
		return err
	}
	names := s.Args()
	if len(names) == 0 {
		names = images.Names()
	}
	return images.Ensure(ctx, cache(), node.Registry, os.Stdout, names...)
}

// runLayout says on standard error what it makes, so that its output is folders alone.
func runLayout(ctx context.Context, arguments []string) error {
	s := flags("layout")
	if _, err := s.parse(arguments); err != nil {
		return err
	}
	for _, name := range s.Args() {
		folder, err := images.Layout(ctx, cache(), os.Stderr, name)
		if err != nil {
			return err
		}
		fmt.Println(folder)
	}
	return nil
}

func runLoad(ctx context.Context, arguments []string) error {
	s := flags("load-image")
	as := s.String("as", "", "name in the plain registry, such as tests/tool:1, or in full with the secure one's address (default: load/FILE:latest)")
	cluster, err := s.parse(arguments)
	if err != nil {
		return err
	}
	if _, err := cluster.Record(); err != nil {
		return err
	}
	if s.NArg() != 1 {
		return errors.New("say one archive or folder: load-image [--as NAME] TAR")
	}
	if *as == "" {
		base, _, _ := strings.Cut(filepath.Base(s.Arg(0)), ".")
		*as = "load/" + strings.ToLower(base) + ":latest"
	}
	reference := images.Reference(node.Registry, *as)
	access, err := accessTo(cluster, reference)
	if err != nil {
		return err
	}
	if err := images.Load(ctx, s.Arg(0), reference, access); err != nil {
		return err
	}
	fmt.Println(reference)
	return nil
}

// accessTo gives what the secure registry wants of those who push to it.
func accessTo(cluster *node.Cluster, reference string) (images.Access, error) {
	if !strings.HasPrefix(reference, node.SecureRegistry+"/") {
		return images.Access{}, nil
	}
	ca, err := os.ReadFile(cluster.RegistryCA())
	if err != nil {
		return images.Access{}, err
	}
	password, err := os.ReadFile(cluster.RegistryPassword())
	return images.Access{CA: ca, User: node.RegistryUser, Password: string(password)}, err
}

// control runs one of the commands that act on named programs.
func control(command string, arguments []string, act func(c *node.Cluster, signal syscall.Signal, names []string) error) error {
	s := flags(command)
	kill := s.Bool("kill", false, "by SIGKILL, as a crash")
	cluster, err := s.parse(arguments)
	if err != nil {
		return err
	}
	unlock, err := lock(cluster)
	if err != nil {
		return err
	}
	defer unlock()
	signal := syscall.SIGTERM
	if *kill {
		signal = syscall.SIGKILL
	}
	return act(cluster, signal, s.Args())
}

func runStop(ctx context.Context, arguments []string) error {
	return control("stop", arguments, func(c *node.Cluster, signal syscall.Signal, names []string) error {
		return c.Stop(ctx, signal, names...)
	})
}

func runStart(ctx context.Context, arguments []string) error {
	return control("start", arguments, func(c *node.Cluster, _ syscall.Signal, names []string) error {
		return c.Start(ctx, names...)
	})
}

func runRestart(ctx context.Context, arguments []string) error {
	return control("restart", arguments, func(c *node.Cluster, signal syscall.Signal, names []string) error {
		return c.Restart(ctx, signal, names...)
	})
}

func runRestartNode(ctx context.Context, arguments []string) error {
	return control("restart-node", arguments, func(c *node.Cluster, signal syscall.Signal, _ []string) error {
		return c.Restart(ctx, signal, "containerd", "kubelet")
	})
}

// runWhich prints where a tool is, for use with another cluster.
func runWhich(ctx context.Context, arguments []string) error {
	s := flags("which")
	if _, err := s.parse(arguments); err != nil {
		return err
	}
	component, known := map[string]string{"helm": "charttool", "kubectl": "kube", "kube": "kube", "ctr": "tools"}[s.Arg(0)]
	if !known {
		return errors.New("say which tool: kubectl, helm, ctr or kube")
	}
	built, err := s.built(ctx, os.Stderr, component)
	if err != nil {
		return err
	}
	switch s.Arg(0) {
	case "helm":
		fmt.Println(built.Helm)
	case "ctr":
		fmt.Println(filepath.Join(built.Tools, "ctr"))
	case "kubectl":
		fmt.Println(filepath.Join(filepath.Dir(built.Kube), "kubectl"))
	default:
		fmt.Println(built.Kube)
	}
	return nil
}

func runProvisioner(ctx context.Context, arguments []string) error {
	s := flags("provisioner")
	cluster, err := s.parse(arguments)
	if err != nil {
		return err
	}
	client, err := cluster.Client()
	if err != nil {
		return err
	}
	p := provisioner.Provisioner{Client: client, Node: cluster.Name, Folder: cluster.Volumes()}
	return p.Run(ctx)
}

func programNames() string { return strings.Join(node.Programs, ", ") }
