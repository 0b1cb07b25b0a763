package images

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"lapstrake.dev/e2e/cluster/internal/build"
	"lapstrake.dev/e2e/cluster/internal/host"
)

// recipeVersion is part of every cached image's key: raise it when a recipe
// below changes what it makes.
const recipeVersion = 1

const (
	suite      = "bookworm"
	searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// caBundle is where Debian's programs look for certificates.
	caBundle = "/etc/ssl/certs/ca-certificates.crt"
)

// recipe makes one base image.
type recipe struct {
	tag string
	// about is said while it is made.
	about string
	// inputs give what else the cached image depends on.
	inputs func(context.Context) (string, error)
	make   func(ctx context.Context, folder string) (v1.Image, error)
	// foreign makes the same for other architectures: then the image is an index.
	foreign map[string]func(ctx context.Context, folder string) (v1.Image, error)
}

// recipes by the name that a user gives.
var recipes = map[string]recipe{
	"debian":  {"bookworm", "Debian " + suite + " (about half a minute)", machine, debian(nil, nil), nil},
	"busybox": {"1", "busybox", busyboxInputs, busybox, nil},
	"golang":  {"1", "Debian with this machine's Go (about a minute)", tool("go", "env", "GOVERSION"), debian(nil, goToolchain), nil},
	"node":    {"lts", "Debian with this machine's Node.js and npm (about a minute)", tool("sh", "-c", "node --version && npm --version"), debian(nil, nodeToolchain), nil},
	"rust":    {"1", "Debian with gcc and this machine's Rust (about two minutes)", tool("rustc", "-vV"), debian([]string{"gcc", "libc6-dev"}, rustToolchain), nil},
	"python":  {"3", "Debian with Python (about a minute)", machine, debian([]string{"python3", "python3-pip", "python3-venv"}, nil), nil},
	"debian-multi": {"bookworm", "Debian " + suite + " for this machine and for arm64, emulated (some minutes)", machine, debian(nil, nil),
		map[string]func(context.Context, string) (v1.Image, error){"arm64": foreignDebian("arm64")}},
}

// Names lists the base images.
func Names() []string {
	var names []string
	for name := range recipes {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Ensure makes the named base images unless the cache has them, and puts them
// into a registry as base/NAME:TAG.
func Ensure(ctx context.Context, cache, registry string, out io.Writer, names ...string) error {
	for _, name := range names {
		if err := ensure(ctx, cache, registry, out, name); err != nil {
			return fmt.Errorf("base image %s: %w", name, err)
		}
	}
	return nil
}

// Prepare makes the named base images in the cache.
func Prepare(ctx context.Context, cache string, out io.Writer, names ...string) error {
	for _, name := range names {
		if _, err := cached(ctx, cache, out, name); err != nil {
			return fmt.Errorf("base image %s: %w", name, err)
		}
	}
	return nil
}

func ensure(ctx context.Context, cache, registry string, out io.Writer, name string) error {
	folder, err := cached(ctx, cache, out, name)
	if err != nil {
		return err
	}
	return Load(ctx, folder, registry+"/base/"+name+":"+recipes[name].tag, Access{})
}

// Layout gives the folder of a base image's OCI layout in the cache.
func Layout(ctx context.Context, cache string, out io.Writer, name string) (string, error) {
	folder, err := cached(ctx, cache, out, name)
	if err != nil {
		return "", fmt.Errorf("base image %s: %w", name, err)
	}
	return folder, nil
}

// cached gives the image's OCI layout in the cache, made if need be.
func cached(ctx context.Context, cache string, out io.Writer, name string) (string, error) {
	recipe, known := recipes[name]
	if !known {
		return "", fmt.Errorf("there is no such base image: one of %s", strings.Join(Names(), ", "))
	}
	inputs, err := recipe.inputs(ctx)
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%d %s %s %q", recipeVersion, name, recipe.tag, inputs))
	folder := filepath.Join(cache, "image-"+name+"-"+hex.EncodeToString(key[:8]))
	if host.Exists(folder) {
		return folder, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := host.Lock(folder+".lock", func() { fmt.Fprintf(out, "waiting for another build of base image %s\n", name) })
	if err != nil {
		return "", err
	}
	defer unlock()
	if host.Exists(folder) {
		return folder, nil
	}
	fmt.Fprintf(out, "making base image %s: %s\n", name, recipe.about)
	started := time.Now()
	if err := makeLayout(ctx, recipe, folder); err != nil {
		return "", err
	}
	fmt.Fprintf(out, "  base image %s: done in %.0f s\n", name, time.Since(started).Seconds())
	return folder, nil
}

func makeLayout(ctx context.Context, recipe recipe, folder string) error {
	unfinished := folder + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(filepath.Dir(folder), "scratch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	made, err := recipe.make(ctx, scratch)
	if err != nil {
		return err
	}
	written, err := layout.Write(unfinished, empty.Index)
	if err != nil {
		return err
	}
	if err := written.AppendImage(made, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: architecture()})); err != nil {
		return err
	}
	for _, foreign := range slices.Sorted(maps.Keys(recipe.foreign)) {
		if foreign == architecture() {
			continue
		}
		scratch, err := os.MkdirTemp(filepath.Dir(folder), "scratch-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(scratch)
		made, err := recipe.foreign[foreign](ctx, scratch)
		if err != nil {
			return err
		}
		if err := written.AppendImage(made, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: foreign})); err != nil {
			return err
		}
	}
	return os.Rename(unfinished, folder)
}

func architecture() string { return runtime.GOARCH }

// machine describes what of this machine goes into a Debian image.
func machine(ctx context.Context) (string, error) {
	bundle, err := os.ReadFile(caBundle)
	if err != nil {
		return "", fmt.Errorf("%w: apt-get install ca-certificates", err)
	}
	apt, err := aptSettings(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x %s %q", sha256.Sum256(bundle), apt, environment(os.Environ())), nil
}

func tool(program string, arguments ...string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		base, err := machine(ctx)
		if err != nil {
			return "", err
		}
		version, err := host.Output(ctx, program, arguments...)
		return base + version, err
	}
}

// aptSettings keeps those of the machine's apt settings that say how packages
// are fetched.
func aptSettings(ctx context.Context) (string, error) {
	dump, err := host.Output(ctx, "apt-config", "dump")
	if err != nil {
		return "", err
	}
	var kept strings.Builder
	for line := range strings.Lines(dump) {
		name, _, _ := strings.Cut(line, " ")
		lower := strings.ToLower(name)
		if strings.HasPrefix(lower, "acquire::check-") || strings.HasPrefix(lower, "acquire::http") && strings.Contains(lower, "proxy") {
			kept.WriteString(line)
		}
	}
	return kept.String(), nil
}

// environment gives the variables that an image sets, so that the common
// package clients find certificates and, where the machine has them, proxies
// and mirrors.
func environment(machine []string) []string {
	variables := []string{"PATH=" + searchPath}
	for _, name := range []string{"SSL_CERT_FILE", "GIT_SSL_CAINFO", "CURL_CA_BUNDLE", "CARGO_HTTP_CAINFO", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "REQUESTS_CA_BUNDLE"} {
		variables = append(variables, name+"="+caBundle)
	}
	passed := []string{
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
		"PIP_INDEX_URL", "PIP_TRUSTED_HOST", "GOPROXY", "GONOSUMDB", "GOSUMDB", "npm_config_registry",
	}
	for _, variable := range machine {
		if name, _, _ := strings.Cut(variable, "="); slices.Contains(passed, name) {
			variables = append(variables, variable)
		}
	}
	return variables
}

// debian makes a minimal Debian with more packages and perhaps a toolchain as a
// second layer.
func debian(packages []string, toolchain func(context.Context, string, *v1.Config) (v1.Layer, error)) func(context.Context, string) (v1.Image, error) {
	return func(ctx context.Context, folder string) (v1.Image, error) {
		settings, err := aptSettings(ctx)
		if err != nil {
			return nil, err
		}
		aptFile := filepath.Join(folder, "90machine")
		if err := os.WriteFile(aptFile, []byte(settings), 0o644); err != nil {
			return nil, err
		}
		root, err := writeLayer(filepath.Join(folder, "root.tar.gz"), func(out io.Writer) error {
			return bootstrap(ctx, aptFile, packages, out)
		})
		if err != nil {
			return nil, err
		}
		config := v1.Config{Env: environment(os.Environ()), Cmd: []string{"bash"}}
		layers := []v1.Layer{root}
		if toolchain != nil {
			second, err := toolchain(ctx, folder, &config)
			if err != nil {
				return nil, err
			}
			layers = append(layers, second)
		}
		return image(architecture(), config, layers...)
	}
}

func bootstrap(ctx context.Context, aptFile string, packages []string, out io.Writer) error {
	include := strings.Join(append([]string{"ca-certificates"}, packages...), ",")
	return mmdebstrap(ctx, aptFile, include, nil, out)
}

// mmdebstrap runs that program, below others where it needs them.
func mmdebstrap(ctx context.Context, aptFile, include string, below func(*exec.Cmd) error, out io.Writer) error {
	command := exec.CommandContext(ctx, "mmdebstrap", "--variant=minbase", "--format=tar",
		"--include="+include,
		"--aptopt=Acquire::Languages \"none\"",
		"--customize-hook=cp "+caBundle+" \"$1"+caBundle+"\"",
		"--customize-hook=cp "+aptFile+" \"$1/etc/apt/apt.conf.d/90machine\"",
		"--customize-hook=rm -rf \"$1\"/usr/share/doc/* \"$1\"/usr/share/man/* \"$1\"/usr/share/locale/*",
		suite, "-")
	var problems strings.Builder
	command.Stdout, command.Stderr = out, &problems
	command.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix()))
	if below != nil {
		if err := below(command); err != nil {
			return err
		}
	}
	if err := command.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w\n%s", err, problems.String())
	}
	return nil
}

// goToolchain adds this machine's Go at /usr/local/go.
func goToolchain(ctx context.Context, folder string, config *v1.Config) (v1.Layer, error) {
	root, err := host.Output(ctx, "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	config.Env = append(config.Env[1:], "PATH=/usr/local/go/bin:/go/bin:"+searchPath, "GOPATH=/go", "GOTOOLCHAIN=local", "CGO_ENABLED=0")
	return writeLayer(filepath.Join(folder, "go.tar.gz"), func(out io.Writer) error {
		archive := tar.NewWriter(out)
		err := writeTree(archive, strings.TrimSpace(root), "usr/local/go", func(relative string) bool {
			return relative == "test" || relative == "api" || relative == "doc" || filepath.Base(relative) == "testdata"
		})
		if err != nil {
			return err
		}
		return archive.Close()
	})
}

// rustToolchain adds this machine's default Rust at /usr/local/rust.
func rustToolchain(ctx context.Context, folder string, config *v1.Config) (v1.Layer, error) {
	root, err := host.Output(ctx, "rustc", "--print", "sysroot")
	if err != nil {
		return nil, err
	}
	config.Env = append(config.Env[1:], "PATH=/usr/local/rust/bin:/usr/local/cargo/bin:"+searchPath, "CARGO_HOME=/usr/local/cargo")
	sysroot, err := filepath.EvalSymlinks(strings.TrimSpace(root))
	if err != nil {
		return nil, err
	}
	return writeLayer(filepath.Join(folder, "rust.tar.gz"), func(out io.Writer) error {
		archive := tar.NewWriter(out)
		err := writeTree(archive, sysroot, "usr/local/rust", func(relative string) bool {
			return relative == "share" || relative == "lib/rustlib/src"
		})
		if err != nil {
			return err
		}
		return archive.Close()
	})
}

func busyboxInputs(context.Context) (string, error) {
	path, err := build.StaticBusybox()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	return fmt.Sprintf("%x", sha256.Sum256(text)), err
}

// busybox makes an image of the static busybox and a link for each of its
// commands.
func busybox(ctx context.Context, folder string) (v1.Image, error) {
	path, err := build.StaticBusybox()
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	commands, err := host.Output(ctx, path, "--list")
	if err != nil {
		return nil, err
	}
	only, err := writeLayer(filepath.Join(folder, "root.tar.gz"), func(out io.Writer) error {
		archive := tar.NewWriter(out)
		if err := busyboxTree(archive, program, strings.Fields(commands)); err != nil {
			return err
		}
		return archive.Close()
	})
	if err != nil {
		return nil, err
	}
	return image(architecture(), v1.Config{Env: []string{"PATH=" + searchPath}, Cmd: []string{"sh"}}, only)
}

// entry is one file of an archive.
type entry struct {
	name string
	kind byte
	mode int64
	link string
	text []byte
}

func busyboxTree(archive *tar.Writer, program []byte, commands []string) error {
	folder := func(name string, mode int64) entry { return entry{name: name, kind: tar.TypeDir, mode: mode} }
	entries := []entry{
		folder("bin/", 0o755), {name: "bin/busybox", mode: 0o755, text: program},
		folder("dev/", 0o755), folder("etc/", 0o755),
		{name: "etc/group", mode: 0o644, text: []byte("root:x:0:\nnogroup:x:65534:\n")},
		{name: "etc/passwd", mode: 0o644, text: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n")},
		folder("home/", 0o755), folder("proc/", 0o555), folder("root/", 0o700), folder("sys/", 0o555), folder("tmp/", 0o1777),
		folder("usr/", 0o755), folder("usr/bin/", 0o755), {name: "usr/bin/env", kind: tar.TypeSymlink, mode: 0o777, link: "/bin/busybox"},
		folder("var/", 0o755), folder("var/tmp/", 0o1777),
	}
	for _, command := range commands {
		if command != "busybox" {
			entries = append(entries, entry{name: "bin/" + command, kind: tar.TypeSymlink, mode: 0o777, link: "busybox"})
		}
	}
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		header := tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Linkname: e.link, Size: int64(len(e.text)), ModTime: epoch}
		if err := archive.WriteHeader(&header); err != nil {
			return err
		}
		if _, err := archive.Write(e.text); err != nil {
			return err
		}
	}
	return nil
}
