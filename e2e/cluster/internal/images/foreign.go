package images

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// enterEmulator gives the user namespace that it runs in a table of emulators
// of its own ($1 goes into it) and goes on with the rest: the machine's table
// stays as it is.
const enterEmulator = `set -eu
table=/proc/sys/fs/binfmt_misc
mount -t binfmt_misc binfmt_misc "$table"
printf '%s' "$1" > "$table/register"
shift
exec "$@"`

// emulators by Go's name of an architecture: the program, and how the kernel
// tells programs of that architecture.
var emulators = map[string]struct{ program, magic string }{
	"arm64":   {"qemu-aarch64-static", `\x02\x00\xb7\x00`},
	"riscv64": {"qemu-riscv64-static", `\x02\x00\xf3\x00`},
}

// foreignDebian makes a minimal Debian of another architecture.
func foreignDebian(architecture string) func(context.Context, string) (v1.Image, error) {
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
			return mmdebstrap(ctx, aptFile, "ca-certificates", emulated(architecture), out)
		})
		if err != nil {
			return nil, err
		}
		return image(architecture, v1.Config{Env: environment(os.Environ()), Cmd: []string{"bash"}}, root)
	}
}

// emulated makes a command run in a user namespace with all of the machine's
// ids, where programs of an architecture are emulated (Linux 6.7 and later).
func emulated(architecture string) func(*exec.Cmd) error {
	return func(command *exec.Cmd) error {
		emulator, known := emulators[architecture]
		if !known {
			return fmt.Errorf("there is no emulator for %s", architecture)
		}
		program, err := exec.LookPath(emulator.program)
		if err != nil {
			return fmt.Errorf("%w: apt-get install qemu-user-static arch-test", err)
		}
		const head, mask = `\x7fELF\x02\x01\x01`, `\xff\xff\xff\xff\xff\xff\xff`
		const zeros = `\x00\x00\x00\x00\x00\x00\x00\x00\x00`
		entry := ":" + architecture + ":M:0:" + head + zeros + emulator.magic + ":" + mask + zeros + `\xfe\xff\xff\xff:` + program + ":FOCP"
		arguments := append([]string{"sh", "-c", enterEmulator, "sh", entry, command.Path, "--architectures=" + architecture}, command.Args[1:]...)
		if command.Path, err = exec.LookPath("sh"); err != nil {
			return err
		}
		command.Args = arguments
		all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: math.MaxUint32}}
		command.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings:                all,
			GidMappings:                all,
			GidMappingsEnableSetgroups: true,
		}
		return nil
	}
}
