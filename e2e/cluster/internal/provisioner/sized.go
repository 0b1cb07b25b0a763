package provisioner

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"lapstrake.dev/e2e/cluster/internal/host"
)

// imageSuffix ends the name of the file that holds a sized volume.
const imageSuffix = ".ext4"

// mountSized puts a file system of the claimed size at a folder. The file is
// sparse: it takes only the space that is used.
func (p *Provisioner) mountSized(ctx context.Context, folder, size string) error {
	if mounted(folder) {
		return nil
	}
	bytes, err := parseQuantity(size)
	if err != nil {
		return err
	}
	image := folder + imageSuffix
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, bytes); err != nil {
		return err
	}
	// No journal and no reserve: nearly all of a small volume is the user's.
	if err := host.Run(ctx, "mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image); err != nil {
		return err
	}
	if err := host.Run(ctx, "mount", "-o", "loop", image, folder); err != nil {
		return err
	}
	return os.Remove(folder + "/lost+found")
}

func mounted(folder string) bool {
	table, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(table), " "+folder+" ")
}

var quantity = regexp.MustCompile(`^(\d+)(Ki|Mi|Gi|Ti|k|M|G|T)?$`)

// parseQuantity reads a whole number of bytes in Kubernetes' notation.
func parseQuantity(text string) (int64, error) {
	parts := quantity.FindStringSubmatch(text)
	if parts == nil {
		return 0, fmt.Errorf("%q is no size that a sized volume can have: a whole number with Ki, Mi, Gi, Ti, k, M, G or T", text)
	}
	number, err := strconv.ParseInt(parts[1], 10, 40)
	if err != nil {
		return 0, fmt.Errorf("%q is too large: %w", text, err)
	}
	factors := map[string]int64{"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
	bytes := number * factors[parts[2]]
	if bytes/factors[parts[2]] != number || bytes <= 0 {
		return 0, fmt.Errorf("%q is no size of a volume", text)
	}
	return bytes, nil
}
