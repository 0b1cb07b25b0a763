// Package build makes the programs of the cluster from their pinned sources and
// keeps them in a cache folder that is keyed by everything that went into them.
//
// Holds: a folder that has its final name is complete; a second build with the
// same inputs does nothing. Never: downloads a prebuilt program.
package build

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Component is one cache folder: programs that are built together.
type Component struct {
	// Name is the first part of the cache folder's name and the folder below
	// e2e/cluster that holds the inputs.
	Name string
	// Summary tells a person what is being built and how long it may take.
	Summary string
	// Steps are the compiler calls, in order.
	Steps []Step
}

// Step is one compiler call.
type Step struct {
	// Output is the program's file name, or "" for a step whose packages each
	// give a program of their own name.
	Output string
	// Packages are import paths, or "." for the module's own main package; for
	// a C step they are source files.
	Packages []string
	Tags     string
	LDFlags  string
	Cgo      bool
	// C says that this is a C compiler's call.
	C bool
	// Links are further names of the output.
	Links []string
}

// moduleVersion reads a module's required version from a go.mod.
func moduleVersion(goMod, module string) (string, error) {
	text, err := os.ReadFile(goMod)
	if err != nil {
		return "", err
	}
	pattern := regexp.MustCompile(`(?m)^(?:require)?\s*` + regexp.QuoteMeta(module) + `\s+(v\S+)`)
	found := pattern.FindSubmatch(text)
	if found == nil {
		return "", fmt.Errorf("%s requires no %s", goMod, module)
	}
	return string(found[1]), nil
}

// kubernetesStamps gives the linker flags that tell the programs their version;
// without them every client sees v0.0.0.
func kubernetesStamps(version string) (string, error) {
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	if len(parts) < 3 {
		return "", fmt.Errorf("%q is not a Kubernetes version", version)
	}
	var flags strings.Builder
	flags.WriteString("-s -w")
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, stamp := range [][2]string{
			{"gitVersion", version}, {"gitMajor", parts[0]}, {"gitMinor", parts[1]},
			{"gitTreeState", "clean"}, {"gitCommit", version},
			// A real date would make every build a different binary.
			{"buildDate", "1970-01-01T00:00:00Z"},
		} {
			fmt.Fprintf(&flags, " -X %s.%s=%s", pkg, stamp[0], stamp[1])
		}
	}
	return flags.String(), nil
}

// Components lists everything that a cluster needs, the longest build last so
// that a broken toolchain shows in seconds.
func Components(source string) ([]Component, error) {
	toolsMod := filepath.Join(source, "tools", "go.mod")
	containerd, err := moduleVersion(toolsMod, "github.com/containerd/containerd/v2")
	if err != nil {
		return nil, err
	}
	runc, err := moduleVersion(toolsMod, "github.com/opencontainers/runc")
	if err != nil {
		return nil, err
	}
	kubernetes, err := moduleVersion(filepath.Join(source, "kube", "go.mod"), "k8s.io/kubernetes")
	if err != nil {
		return nil, err
	}
	stamps, err := kubernetesStamps(kubernetes)
	if err != nil {
		return nil, err
	}
	const cni = "github.com/containernetworking/plugins/plugins/"
	const ctd = "github.com/containerd/containerd/v2/"
	return []Component{
		{
			Name: "pause", Summary: "compiling the pause program",
			Steps: []Step{{Output: "pause", Packages: []string{"pause.c"}, C: true}},
		},
		{
			Name: "tools", Summary: "compiling containerd, runc, the CNI plugins and the registry, about 4 minutes the first time on 2 cores",
			Steps: []Step{
				{Output: "runc", Packages: []string{"github.com/opencontainers/runc"}, Tags: "seccomp", Cgo: true,
					LDFlags: "-s -w -X main.version=" + strings.TrimPrefix(runc, "v")},
				{Packages: []string{cni + "main/bridge", cni + "main/loopback", cni + "ipam/host-local", cni + "meta/portmap"}, LDFlags: "-s -w"},
				{Packages: []string{ctd + "cmd/containerd", ctd + "cmd/containerd-shim-runc-v2", ctd + "cmd/ctr"},
					Tags:    "no_btrfs no_devmapper no_zfs",
					LDFlags: "-s -w -X " + ctd + "version.Version=" + containerd},
				{Packages: []string{"github.com/distribution/distribution/v3/cmd/registry"}, LDFlags: "-s -w"},
			},
		},
		{
			Name: "charttool", Summary: "compiling Helm, about 3 minutes the first time on 2 cores",
			Steps: []Step{{Packages: []string{"helm.sh/helm/v4/cmd/helm"}, LDFlags: "-s -w"}},
		},
		{
			Name: "kube", Summary: "compiling Kubernetes " + kubernetes + ", about 12 minutes the first time on 2 cores",
			Steps: []Step{{Output: "kube", Packages: []string{"."}, LDFlags: stamps, Links: []string{"kubectl"}}},
		},
	}, nil
}
