package build

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sources writes a component's folder.
func sources(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func key(t *testing.T, root string, component Component, compiler string) string {
	t.Helper()
	key, err := Key(root, component, compiler)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKeyChangesWithEachInputAndWithNothingElse(t *testing.T) {
	component := Component{Name: "x", Steps: []Step{{Output: "x", Packages: []string{"."}}}}
	files := map[string]string{"x/go.mod": "module x", "x/main.go": "package main"}
	first := key(t, sources(t, files), component, "go1")
	if !strings.HasPrefix(first, "x-") {
		t.Errorf("%q does not begin with the component's name", first)
	}

	files["x/README.md"] = "prose"
	files["x/main_test.go"] = "package main"
	if again := key(t, sources(t, files), component, "go1"); again != first {
		t.Errorf("prose and tests changed the key")
	}
	if other := key(t, sources(t, files), component, "go2"); other == first {
		t.Errorf("another compiler gives the same key")
	}
	flagged := component
	flagged.Steps = []Step{{Output: "x", Packages: []string{"."}, Tags: "seccomp"}}
	if other := key(t, sources(t, files), flagged, "go1"); other == first {
		t.Errorf("another build tag gives the same key")
	}
	files["x/main.go"] = "package main // changed"
	if other := key(t, sources(t, files), component, "go1"); other == first {
		t.Errorf("another source gives the same key")
	}
}

func TestKeySeesTextThatMovesBetweenFiles(t *testing.T) {
	component := Component{Name: "x"}
	one := key(t, sources(t, map[string]string{"x/a.go": "ab", "x/b.go": "c"}), component, "go1")
	other := key(t, sources(t, map[string]string{"x/a.go": "a", "x/b.go": "bc"}), component, "go1")
	if one == other {
		t.Errorf("the same bytes, cut elsewhere, give the same key")
	}
}

func TestKeyOfAnEmptyFolderIsAnError(t *testing.T) {
	root := sources(t, map[string]string{"x/README.md": "prose"})
	if _, err := Key(root, Component{Name: "x"}, "go1"); err == nil {
		t.Errorf("a folder without sources has a key")
	}
}

func TestComponentsOfThisRepositoryAreStampedWithTheirVersions(t *testing.T) {
	components, err := Components(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	last := components[len(components)-1]
	if last.Name != "kube" {
		t.Fatalf("the longest build is not last, but %s", last.Name)
	}
	for _, want := range []string{"k8s.io/component-base/version.gitVersion=v1.", "k8s.io/client-go/pkg/version.gitMajor=1"} {
		if !strings.Contains(last.Steps[0].LDFlags, want) {
			t.Errorf("linker flags lack %s", want)
		}
	}
}

func TestModuleVersionReadsBothFormsOfRequire(t *testing.T) {
	root := sources(t, map[string]string{"go.mod": "module x\n\nrequire example.org/one v1.2.3\n\nrequire (\n\texample.org/two v0.4.0 // indirect\n)\n"})
	for module, want := range map[string]string{"example.org/one": "v1.2.3", "example.org/two": "v0.4.0"} {
		got, err := moduleVersion(filepath.Join(root, "go.mod"), module)
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", module, got, err, want)
		}
	}
	if _, err := moduleVersion(filepath.Join(root, "go.mod"), "example.org/three"); err == nil {
		t.Errorf("a module that is not required has a version")
	}
}

func TestProgressCountsPackagesAndKeepsComplaints(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out, 3)
	defer p.close()
	if line := p.line(time.Minute); !strings.Contains(line, "fetching") {
		t.Errorf("before the first package: %q", line)
	}
	// Lines come cut anywhere.
	for _, text := range []string{"go: downloading example.org/x v1.0.0\nexample", ".org/a\nexample.org/b", "\nx.go:3:1: undefined: y\n"} {
		if _, err := p.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if line, want := p.line(20*time.Second), "20s: 2 of at most 3 packages compiled, at example.org/b"; line != want {
		t.Errorf("got %q, want %q", line, want)
	}
	if tail := p.tail(); tail != "x.go:3:1: undefined: y" {
		t.Errorf("the complaint is %q", tail)
	}
	if _, err := p.Write([]byte("command-line-arguments\n")); err != nil {
		t.Fatal(err)
	}
	if line := p.line(time.Minute); !strings.Contains(line, "linking") {
		t.Errorf("after the last package: %q", line)
	}
}

func TestVersionsCompareByNumber(t *testing.T) {
	for _, c := range []struct {
		a, b string
		less bool
	}{
		{"1.9", "1.10", true}, {"1.26.0", "1.26", false}, {"1.26", "1.26.1", true}, {"1.27", "1.26.8", false}, {"", "1.2", true},
	} {
		if got := versionLess(c.a, c.b); got != c.less {
			t.Errorf("versionLess(%q, %q) = %v", c.a, c.b, got)
		}
	}
}
