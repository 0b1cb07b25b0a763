// Command actions serves the cache of GitHub Actions, as nektos/act has it for workflows that run at home: version 1 of the protocol.
//
//	actions DIR PORT
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/nektos/act/pkg/artifactcache"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "actions:", err)
		os.Exit(1)
	}
	select {}
}

func serve() error {
	if len(os.Args) != 3 {
		return errors.New("a folder and a port")
	}
	port, err := strconv.ParseUint(os.Args[2], 10, 16)
	if err != nil {
		return err
	}
	// Its address has a secret in it, which clients must have.
	handler, err := artifactcache.StartHandler(os.Args[1], "", "127.0.0.1", uint16(port), nil)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(os.Args[1], "url"), []byte(handler.ExternalURL()), 0o600)
}
