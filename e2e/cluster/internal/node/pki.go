package node

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"golang.org/x/crypto/bcrypt"

	"lapstrake.dev/e2e/cluster/internal/host"
)

// certificateLife is far longer than any test cluster lives.
const certificateLife = 365 * 24 * time.Hour

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

// admin may do everything.
var admin = request{name: "lapstrake-admin", groups: []string{"system:masters"}}

// request says what a certificate is for.
type request struct {
	name string
	// groups become the organization: Kubernetes reads groups from there.
	groups []string
	// hosts are names and addresses; a certificate with hosts is a server's.
	hosts []string
}

func newAuthority(name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := template(request{name: name})
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = nil
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key, pemBlock("CERTIFICATE", der)}, nil
}

func template(want request) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	result := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: want.name, Organization: want.groups},
		// A little earlier, for clocks that differ.
		NotBefore:   time.Now().Add(-time.Hour),
		NotAfter:    time.Now().Add(certificateLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, name := range want.hosts {
		result.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if address := net.ParseIP(name); address != nil {
			result.IPAddresses = append(result.IPAddresses, address)
		} else {
			result.DNSNames = append(result.DNSNames, name)
		}
	}
	return result, nil
}

// issue makes a key and its certificate, both as PEM.
func (a *authority) issue(want request) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template, err := template(want)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &private.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	key, err = keyPEM(private)
	return pemBlock("CERTIFICATE", der), key, err
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pemBlock("EC PRIVATE KEY", der), nil
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// writePKI makes every certificate, kubeconfig and password of the cluster.
func (c *Cluster) writePKI() error {
	cluster, err := newAuthority("lapstrake-cluster")
	if err != nil {
		return err
	}
	front, err := newAuthority("lapstrake-front-proxy")
	if err != nil {
		return err
	}
	registry, err := newAuthority("lapstrake-registry")
	if err != nil {
		return err
	}
	clusterKey, err := keyPEM(cluster.key)
	if err != nil {
		return err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	accountsKey, err := keyPEM(accounts)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"ca.crt": cluster.pem, "ca.key": clusterKey, "front-proxy-ca.crt": front.pem,
		"registry-ca.crt": registry.pem, "service-accounts.key": accountsKey,
	}
	for file, signed := range map[string]struct {
		by   *authority
		want request
	}{
		"apiserver": {cluster, request{name: "kube-apiserver", hosts: []string{
			NodeAddress, serviceAddress, linkAddress, "127.0.0.1", "localhost",
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}}},
		"kubelet":          {cluster, request{name: c.Name, hosts: []string{NodeAddress, c.Name}}},
		"apiserver-client": {cluster, request{name: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}}},
		"front-proxy":      {front, request{name: "front-proxy-client"}},
		// The tool's own identity, the same as the kubeconfig's.
		"admin":    {cluster, admin},
		"registry": {registry, request{name: "registry", hosts: []string{NodeAddress, linkAddress, "registry.test"}}},
	} {
		certificate, key, err := signed.by.issue(signed.want)
		if err != nil {
			return err
		}
		files[file+".crt"], files[file+".key"] = certificate, key
	}
	for name, text := range files {
		mode := os.FileMode(0o600)
		if bytes.Contains(text, []byte("CERTIFICATE")) {
			mode = 0o644
		}
		if err := host.WriteFile(c.path("pki", name), text, mode); err != nil {
			return err
		}
	}
	if err := c.writeKubeconfigs(cluster); err != nil {
		return err
	}
	return c.writePassword()
}

// writeKubeconfigs gives each program its own identity, as RBAC's built-in
// rules expect, and the administrator theirs.
func (c *Cluster) writeKubeconfigs(cluster *authority) error {
	for path, who := range map[string]request{
		c.Kubeconfig():                                         admin,
		c.path("config", "kubelet.kubeconfig"):                 {name: "system:node:" + c.Name, groups: []string{"system:nodes"}},
		c.path("config", "kube-proxy.kubeconfig"):              {name: "system:kube-proxy"},
		c.path("config", "kube-scheduler.kubeconfig"):          {name: "system:kube-scheduler"},
		c.path("config", "kube-controller-manager.kubeconfig"): {name: "system:kube-controller-manager"},
	} {
		certificate, key, err := cluster.issue(who)
		if err != nil {
			return err
		}
		text := kubeconfig(c.Name, who.name, cluster.pem, certificate, key)
		if err := host.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func kubeconfig(cluster, user string, ca, certificate, key []byte) string {
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster:
    server: %[2]s
    certificate-authority-data: %[3]s
users:
- name: %[4]q
  user:
    client-certificate-data: %[5]s
    client-key-data: %[6]s
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[4]q}
current-context: %[1]s
`, cluster, APIServer, encode(ca), user, encode(certificate), encode(key))
}

func (c *Cluster) writePassword() error {
	random := make([]byte, 18)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	password := base64.RawURLEncoding.EncodeToString(random)
	// The cheapest cost: the registry checks it on every request.
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		return err
	}
	if err := host.WriteFile(c.RegistryPassword(), []byte(password), 0o600); err != nil {
		return err
	}
	return host.WriteFile(c.path("config", "htpasswd"), fmt.Appendf(nil, "%s:%s\n", RegistryUser, hash), 0o600)
}
