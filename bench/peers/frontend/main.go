// Command frontend measures BuildKit's Dockerfile frontend: it reads and lowers a file again and again, as
// `lapstrake-dockerfile`'s example `measure` does with ours.
//
//	go run ./frontend FILE
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const runs = 200

// images knows a config for every image.
type images []byte

func (config images) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return ref, digest.FromString(ref), config, nil
}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	platform := ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	config, err := json.Marshal(ocispecs.Image{
		Platform: platform,
		Config:   ocispecs.ImageConfig{Env: []string{"PATH=/usr/bin:/bin"}},
		RootFS:   ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString("")}},
	})
	if err != nil {
		return err
	}
	caps := pb.Caps.CapSet(pb.Caps.All())
	var out strings.Builder
	for range runs {
		began := time.Now()
		result, err := dockerfile2llb.Dockerfile2LLB(context.Background(), text, dockerfile2llb.ConvertOpt{
			TargetPlatform: &platform, MetaResolver: images(config), LLBCaps: &caps,
		})
		if err != nil {
			return err
		}
		definition, err := result.State.Marshal(context.Background(), llb.WithCaps(caps))
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "run %d %d vertices\n", time.Since(began).Nanoseconds(), len(definition.Def))
	}
	fmt.Print(out.String())
	return nil
}
