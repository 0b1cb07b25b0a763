// Command llb writes a definition of a build, as `buildctl build` reads it from its standard input.
//
//	llb NAME | buildctl build
//
// The environment names what stands outside: REG (a registry), HTTP (a web server), GIT (a Git server).
package main

import (
	"context"
	"fmt"
	"os"
	"sort"

	"github.com/moby/buildkit/client/llb"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "llb:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		names := make([]string, 0, len(builds))
		for name := range builds {
			names = append(names, name)
		}
		sort.Strings(names)
		return fmt.Errorf("one name of %q", names)
	}
	build, ok := builds[args[0]]
	if !ok {
		return fmt.Errorf("no definition is called %q", args[0])
	}
	definition, err := build().Marshal(context.Background(), llb.LinuxAmd64)
	if err != nil {
		return err
	}
	return llb.WriteTo(definition, os.Stdout)
}
