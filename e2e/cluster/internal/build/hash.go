package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// hashLength is how many hex digits of the inputs' hash a cache folder's name
// carries: enough that two different inputs never meet in one cache.
const hashLength = 16

// Key names the cache folder of a component: its name and a hash of its inputs,
// which are its sources, its compiler flags and the compiler's version.
func Key(source string, component Component, compiler string) (string, error) {
	folder := filepath.Join(source, component.Name)
	files, err := inputs(folder)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "compiler %q\n", compiler)
	for _, step := range component.Steps {
		fmt.Fprintf(sum, "step %+v\n", step)
	}
	for _, name := range files {
		fmt.Fprintf(sum, "file %q\n", name)
		if err := hashFile(sum, filepath.Join(folder, name)); err != nil {
			return "", err
		}
	}
	return component.Name + "-" + hex.EncodeToString(sum.Sum(nil))[:hashLength], nil
}

// inputs lists the files of a component, without tests and prose.
func inputs(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		name := entry.Name()
		if entry.IsDir() || strings.HasSuffix(name, "_test.go") {
			continue
		}
		switch filepath.Ext(name) {
		case ".go", ".mod", ".sum", ".c":
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s holds nothing to build", folder)
	}
	sort.Strings(names)
	return names, nil
}

func hashFile(into io.Writer, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	// The size keeps the border between two files fixed.
	fmt.Fprintf(into, "size %d\n", info.Size())
	_, err = io.Copy(into, file)
	return err
}
