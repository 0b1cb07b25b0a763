package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lapstrake.dev/e2e/cluster/internal/host"
)

// Builder builds components into a cache.
type Builder struct {
	// Source is the e2e/cluster folder.
	Source string
	// Cache is the folder that keeps what was built.
	Cache string
	// Out takes what a person reads.
	Out io.Writer
}

// Built is where each component's programs are.
type Built struct {
	Kube  string `json:"kube"`
	Tools string `json:"tools"`
	Helm  string `json:"helm"`
	Pause string `json:"pause"`
}

// compilers names the versions of all that turns sources into programs.
func compilers(ctx context.Context) (string, error) {
	goVersion, err := host.Output(ctx, "go", "env", "GOVERSION", "GOOS", "GOARCH", "GOAMD64")
	if err != nil {
		return "", err
	}
	gcc, err := host.Output(ctx, "gcc", "-dumpfullversion", "-dumpmachine")
	if err != nil {
		return "", err
	}
	return strings.Join(strings.Fields(goVersion+" "+gcc), " "), nil
}

// Build makes what the cache lacks. With names it makes only those components;
// it says of all of them where they are or would be.
func (b *Builder) Build(ctx context.Context, only ...string) (Built, error) {
	var built Built
	components, err := Components(b.Source)
	if err != nil {
		return built, err
	}
	compiler, err := compilers(ctx)
	if err != nil {
		return built, err
	}
	for _, name := range only {
		if !slices.ContainsFunc(components, func(c Component) bool { return c.Name == name }) {
			return built, fmt.Errorf("there is no component %q: pause, tools, charttool or kube", name)
		}
	}
	for _, component := range components {
		key, err := Key(b.Source, component, compiler)
		if err != nil {
			return built, err
		}
		folder := filepath.Join(b.Cache, key)
		if len(only) == 0 || slices.Contains(only, component.Name) {
			if err := b.component(ctx, component, folder); err != nil {
				return built, fmt.Errorf("%s: %w", component.Name, err)
			}
		}
		switch component.Name {
		case "kube":
			built.Kube = filepath.Join(folder, "kube")
		case "tools":
			built.Tools = folder
		case "charttool":
			built.Helm = filepath.Join(folder, "helm")
		case "pause":
			built.Pause = filepath.Join(folder, "pause")
		}
	}
	return built, nil
}

// component builds one component unless its folder is there. Two builders of
// the same component wait for each other.
func (b *Builder) component(ctx context.Context, component Component, folder string) error {
	if host.Exists(folder) {
		return nil
	}
	if err := os.MkdirAll(b.Cache, 0o755); err != nil {
		return err
	}
	unlock, err := host.Lock(folder+".lock", func() {
		fmt.Fprintf(b.Out, "waiting for another build of %s\n", filepath.Base(folder))
	})
	if err != nil {
		return err
	}
	defer unlock()
	if host.Exists(folder) {
		return nil
	}
	unfinished := folder + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	if err := os.MkdirAll(unfinished, 0o755); err != nil {
		return err
	}
	fmt.Fprintln(b.Out, component.Summary)
	started := time.Now()
	for _, step := range component.Steps {
		if err := b.step(ctx, component, step, unfinished); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.Out, "  %s: done in %s\n", component.Name, time.Since(started).Round(time.Second))
	return os.Rename(unfinished, folder)
}

func (b *Builder) step(ctx context.Context, component Component, step Step, folder string) error {
	output := folder + string(filepath.Separator) + step.Output
	dir := filepath.Join(b.Source, component.Name)
	if step.C {
		arguments := append([]string{"-Os", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-o", output}, step.Packages...)
		command := exec.CommandContext(ctx, "gcc", arguments...)
		command.Dir = dir
		if text, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("gcc %s: %w\n%s", strings.Join(step.Packages, " "), err, text)
		}
		return nil
	}
	cgo := "CGO_ENABLED=0"
	if step.Cgo {
		cgo = "CGO_ENABLED=1"
	}
	environment := append(os.Environ(), cgo, "GOWORK=off", "GOFLAGS=-buildvcs=false -trimpath -mod=readonly", "GOTOOLCHAIN=local")
	total, err := dependencyCount(ctx, dir, environment, step)
	if err != nil {
		return err
	}
	arguments := append([]string{"build", "-v", "-tags", step.Tags, "-ldflags", step.LDFlags, "-o", output}, step.Packages...)
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = dir
	command.Env = environment
	progress := newProgress(b.Out, total)
	defer progress.close()
	command.Stdout, command.Stderr = progress, progress
	if err := command.Run(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(step.Packages, " "), err, progress.tail())
	}
	for _, link := range step.Links {
		if err := os.Symlink(step.Output, filepath.Join(folder, link)); err != nil {
			return err
		}
	}
	return nil
}

// dependencyCount tells how many packages a step compiles when none of them is
// in the compiler's own cache.
func dependencyCount(ctx context.Context, dir string, environment []string, step Step) (int, error) {
	arguments := append([]string{"list", "-deps", "-tags", step.Tags, "-f", "{{.ImportPath}}"}, step.Packages...)
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = dir
	command.Env = environment
	var problems strings.Builder
	command.Stderr = &problems
	text, err := command.Output()
	if err != nil {
		return 0, fmt.Errorf("go list %s: %w\n%s", strings.Join(step.Packages, " "), err, problems.String())
	}
	return strings.Count(string(text), "\n"), nil
}
