package images

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"lapstrake.dev/e2e/cluster/internal/host"
)

// nodeToolchain adds this machine's Node.js and npm below /usr/local.
func nodeToolchain(ctx context.Context, folder string, _ *v1.Config) (v1.Layer, error) {
	// One whose parts are libraries of the machine's distribution would not run elsewhere.
	told, err := host.Output(ctx, "node", "-p", "process.execPath + ' ' + !!process.config.variables.node_shared")
	if err != nil {
		return nil, fmt.Errorf("%w: install Node.js", err)
	}
	program, shared, _ := strings.Cut(strings.TrimSpace(told), " ")
	if shared != "false" {
		return nil, fmt.Errorf("%s needs libraries of its distribution: install a build of nodejs.org's", program)
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return nil, fmt.Errorf("%w: install npm", err)
	}
	script, err := filepath.EvalSymlinks(npm)
	if err != nil {
		return nil, err
	}
	// It is bin/npm-cli.js of the package.
	modules := filepath.Dir(filepath.Dir(script))
	if !host.Exists(filepath.Join(modules, "package.json")) {
		return nil, fmt.Errorf("%s is not where npm's package is", script)
	}
	return writeLayer(filepath.Join(folder, "node.tar.gz"), func(out io.Writer) error {
		archive := tar.NewWriter(out)
		if err := nodeTree(archive, program, modules); err != nil {
			return err
		}
		return archive.Close()
	})
}

func nodeTree(archive *tar.Writer, program, modules string) error {
	err := writeTree(archive, modules, "usr/local/lib/node_modules/npm", func(relative string) bool {
		return relative == "docs" || relative == "man"
	})
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "usr/local/bin/", Mode: 0o755, ModTime: epoch}); err != nil {
		return err
	}
	info, err := os.Stat(program)
	if err != nil {
		return err
	}
	if err := writeEntry(archive, program, "usr/local/bin/node", fs.FileInfoToDirEntry(info)); err != nil {
		return err
	}
	for _, name := range []string{"npm", "npx"} {
		target := "../lib/node_modules/npm/bin/" + name + "-cli.js"
		header := tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/local/bin/" + name, Linkname: target, Mode: 0o777, ModTime: epoch}
		if err := archive.WriteHeader(&header); err != nil {
			return err
		}
	}
	return nil
}
