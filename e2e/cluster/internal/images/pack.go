// Package images makes the cluster's base images from this machine's own
// package sources and toolchains, and puts images into a registry.
//
// The base images are for this machine only: they carry its package mirrors and
// certificates, so that a step of a build can install packages as the machine
// itself can. Nothing of that is part of the project.
package images

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// epoch stands in for every time in an image.
var epoch = time.Unix(1700000000, 0).UTC()

// layer is a compressed file on disk whose digests are known, so that nothing
// is compressed or read twice.
type layer struct {
	path           string
	digest, diffID v1.Hash
	size           int64
}

func (l *layer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *layer) Compressed() (io.ReadCloser, error)  { return os.Open(l.path) }
func (l *layer) Size() (int64, error)                { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	file, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	plain, err := gzip.NewReader(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{plain, file}, nil
}

// writeLayer compresses what fill writes into a file.
func writeLayer(path string, fill func(io.Writer) error) (*layer, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	packed, plain := sha256.New(), sha256.New()
	counter := &countWriter{to: io.MultiWriter(file, packed)}
	// Local traffic only: speed counts more than size.
	compressor, err := gzip.NewWriterLevel(counter, 3)
	if err != nil {
		return nil, err
	}
	if err := fill(io.MultiWriter(compressor, plain)); err != nil {
		return nil, err
	}
	if err := compressor.Close(); err != nil {
		return nil, err
	}
	return &layer{path: path, digest: sum(packed), diffID: sum(plain), size: counter.count}, file.Close()
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

type countWriter struct {
	to    io.Writer
	count int64
}

func (c *countWriter) Write(text []byte) (int, error) {
	n, err := c.to.Write(text)
	c.count += int64(n)
	return n, err
}

// image puts layers together.
func image(architecture string, config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	var additions []mutate.Addendum
	for _, l := range layers {
		additions = append(additions, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "lapstrake-cluster"}})
	}
	result, err := mutate.Append(base, additions...)
	if err != nil {
		return nil, err
	}
	file, err := result.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created, file.Config = "linux", architecture, v1.Time{Time: epoch}, config
	return mutate.ConfigFile(result, file)
}

// WritePauseArchive makes an archive of the one-file pause image, for the
// container runtime to import.
func WritePauseArchive(program, reference, archive string) error {
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	blob := archive + ".layer"
	defer os.Remove(blob)
	only, err := writeLayer(blob, func(out io.Writer) error {
		archive := tar.NewWriter(out)
		if err := archive.WriteHeader(&tar.Header{Name: "pause", Mode: 0o755, Size: int64(len(text)), ModTime: epoch}); err != nil {
			return err
		}
		if _, err := archive.Write(text); err != nil {
			return err
		}
		return archive.Close()
	})
	if err != nil {
		return err
	}
	pause, err := image(architecture(), v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"}, only)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(reference)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(archive, tag, pause)
}

// writeTree archives a folder under another path, all owned by root, without
// what skip picks.
func writeTree(archive *tar.Writer, from, to string, skip func(relative string) bool) error {
	if err := writeParents(archive, to); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil || relative == "." {
			return err
		}
		if skip(relative) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		return writeEntry(archive, path, filepath.Join(to, relative), entry)
	})
}

func writeParents(archive *tar.Writer, folder string) error {
	parts := strings.Split(folder, "/")
	for i := range parts {
		name := strings.Join(parts[:i+1], "/") + "/"
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: epoch}); err != nil {
			return err
		}
	}
	return nil
}

func writeEntry(archive *tar.Writer, path, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	header.Name, header.ModTime = name, epoch
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
	header.AccessTime, header.ChangeTime = time.Time{}, time.Time{}
	if info.IsDir() {
		header.Name += "/"
	}
	if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.CopyN(archive, file, info.Size()); err != nil {
		return errors.Join(fmt.Errorf("archive %s", path), err)
	}
	return nil
}
