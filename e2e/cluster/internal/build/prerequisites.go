package build

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"lapstrake.dev/e2e/cluster/internal/host"
)

// Missing is one thing that this machine lacks, and the way to get it.
type Missing struct {
	What string
	How  string
}

func (m Missing) String() string {
	return "missing: " + m.What + "; " + m.How
}

// packageOf names the Debian package of each program that the cluster calls.
var packageOf = []struct{ program, pkg string }{
	{"gcc", "gcc libc6-dev"},
	{"pkg-config", "pkg-config"},
	{"ip", "iproute2"},
	{"nft", "nftables"},
	{"nsenter", "util-linux"},
	{"mmdebstrap", "mmdebstrap"},
	{"mkfs.ext4", "e2fsprogs"},
}

// Prerequisites lists all that is missing, so that one run tells everything.
func Prerequisites(ctx context.Context, source string) []Missing {
	var missing []Missing
	if os.Geteuid() != 0 {
		missing = append(missing, Missing{"root", "a node makes namespaces and mounts: run this command as root"})
	}
	if m := goToolchain(ctx, source); m != nil {
		missing = append(missing, *m)
	}
	for _, need := range packageOf {
		if _, err := exec.LookPath(need.program); err != nil {
			missing = append(missing, Missing{need.program, "apt-get install " + need.pkg})
		}
	}
	if _, err := exec.LookPath("pkg-config"); err == nil {
		if _, err := host.Output(ctx, "pkg-config", "--exists", "libseccomp"); err != nil {
			missing = append(missing, Missing{"libseccomp's headers", "apt-get install libseccomp-dev"})
		}
	}
	if _, err := StaticBusybox(); err != nil {
		missing = append(missing, Missing{"a static busybox", "apt-get install busybox-static"})
	}
	filesystems, _ := os.ReadFile("/proc/filesystems")
	if !strings.Contains(string(filesystems), "\toverlay\n") {
		missing = append(missing, Missing{"overlayfs in the kernel", "modprobe overlay"})
	}
	return missing
}

// goToolchain checks the compiler's version against the newest that any of the
// modules asks for.
func goToolchain(ctx context.Context, source string) *Missing {
	need := ""
	for _, module := range []string{"kube", "tools", "charttool", "."} {
		text, err := os.ReadFile(filepath.Join(source, module, "go.mod"))
		if err != nil {
			continue
		}
		if found := regexp.MustCompile(`(?m)^go (\S+)`).FindSubmatch(text); found != nil && versionLess(need, string(found[1])) {
			need = string(found[1])
		}
	}
	how := "install Go " + need + " or newer from https://go.dev/dl/ and put it on the PATH"
	have, err := host.Output(ctx, "go", "env", "GOVERSION")
	if err != nil {
		return &Missing{"go", how}
	}
	have = strings.TrimPrefix(strings.TrimSpace(have), "go")
	if versionLess(have, need) {
		return &Missing{fmt.Sprintf("a newer Go than %s", have), how}
	}
	return nil
}

// versionLess compares dotted versions number by number.
func versionLess(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		var x, y int
		if i < len(as) {
			x, _ = strconv.Atoi(as[i]) // "" and release candidates count as 0
		}
		if i < len(bs) {
			y, _ = strconv.Atoi(bs[i])
		}
		if x != y {
			return x < y
		}
	}
	return false
}

// StaticBusybox finds a busybox that runs without any library.
func StaticBusybox() (string, error) {
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox"} {
		program, err := elf.Open(path)
		if err != nil {
			continue
		}
		static := true
		for _, segment := range program.Progs {
			static = static && segment.Type != elf.PT_INTERP
		}
		program.Close()
		if static {
			return path, nil
		}
	}
	return "", fmt.Errorf("no static busybox in /bin, /usr/bin or /usr/local/bin")
}
