package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// UnmountBelow takes away every mount at or below a folder, the youngest first.
func UnmountBelow(folder string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	points := mountsBelow(string(text), folder)
	for i := len(points) - 1; i >= 0; i-- {
		// Detached, so that a program that still looks into it cannot keep it.
		err := unix.Unmount(points[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", points[i], err)
		}
	}
	return nil
}

// mountsBelow picks mount points out of a mountinfo text, in its order.
func mountsBelow(text, folder string) []string {
	var points []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if point == folder || strings.HasPrefix(point, folder+"/") {
			points = append(points, point)
		}
	}
	return points
}

// unescape undoes the octal escapes of the kernel's tables.
func unescape(text string) string {
	var plain strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if code, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				plain.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		plain.WriteByte(text[i])
	}
	return plain.String()
}

// Sysctls reads kernel settings, so that they can be put back.
func Sysctls(names ...string) map[string]string {
	values := map[string]string{}
	for _, name := range names {
		if text, err := os.ReadFile(sysctlPath(name)); err == nil {
			values[name] = strings.TrimSpace(string(text))
		}
	}
	return values
}

// SetSysctl changes one kernel setting.
func SetSysctl(name, value string) error {
	return os.WriteFile(sysctlPath(name), []byte(value), 0)
}

func sysctlPath(name string) string {
	return filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
}
