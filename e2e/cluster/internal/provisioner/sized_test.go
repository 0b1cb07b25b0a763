package provisioner

import "testing"

func TestQuantitiesAreReadAsKubernetesWritesThem(t *testing.T) {
	for text, want := range map[string]int64{"64Mi": 64 << 20, "1Gi": 1 << 30, "500M": 500_000_000, "4096": 4096} {
		if got, err := parseQuantity(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-1Gi", "1.5Gi", "0", "1Pi", "Gi", "9999999Ti"} {
		if got, err := parseQuantity(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}
