package host

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Network is the node's own network namespace and the way to it.
type Network struct {
	// Name of the namespace; the host's names are derived from it.
	Name string
	// HostAddress and NodeLink are the two ends of the link between host and
	// namespace, with LinkBits as prefix length.
	HostAddress, NodeLink string
	LinkBits              int
	// Bridge carries the pods; BridgeAddress is the node's address on it.
	Bridge, BridgeAddress string
	PodBits               int
	// Routes are the ranges that the host reaches through the namespace.
	Routes []string
}

// Path is the file that names the namespace for nsenter.
func (n Network) Path() string { return filepath.Join("/run/netns", n.Name) }

// HostLink is the host's end of the link. Interface names have 15 characters
// at most.
func (n Network) HostLink() string { return "veth-" + n.Name[:min(len(n.Name), 10)] }

func (n Network) table() string { return "lapstrake_" + strings.ReplaceAll(n.Name, "-", "_") }

// Free checks that nobody on this machine uses the addresses.
func (n Network) Free(ctx context.Context) error {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, route := range append([]string{n.HostAddress + "/" + strconv.Itoa(n.LinkBits)}, n.Routes...) {
		_, block, err := net.ParseCIDR(route)
		if err != nil {
			return err
		}
		for _, address := range addresses {
			if have, ok := address.(*net.IPNet); ok && (block.Contains(have.IP) || have.Contains(block.IP)) {
				return fmt.Errorf("this machine already uses %s, which overlaps the cluster's %s: is another cluster up? (lapstrake-cluster down --name NAME)", have, block)
			}
		}
		text, err := Output(ctx, "ip", "route", "show", "root", block.String())
		if err != nil {
			return err
		}
		if text = strings.TrimSpace(text); text != "" {
			return fmt.Errorf("this machine already has a route into the cluster's %s: %s", block, text)
		}
	}
	return nil
}

// Up makes the namespace, its link, its bridge and the host's rules.
func (n Network) Up(ctx context.Context) error {
	mtu := strconv.Itoa(UplinkMTU())
	inside := []string{"-n", n.Name}
	bits := "/" + strconv.Itoa(n.LinkBits)
	commands := [][]string{
		{"netns", "add", n.Name},
		{"link", "add", n.HostLink(), "mtu", mtu, "type", "veth", "peer", "name", "uplink", "mtu", mtu, "netns", n.Name},
		{"addr", "add", n.HostAddress + bits, "dev", n.HostLink()},
		{"link", "set", n.HostLink(), "up"},
		append(inside, "link", "set", "lo", "up"),
		append(inside, "addr", "add", n.NodeLink+bits, "dev", "uplink"),
		append(inside, "link", "set", "uplink", "up"),
		append(inside, "route", "add", "default", "via", n.HostAddress),
		// A fixed hardware address: else it changes with the first pod, and
		// what pods remember of their gateway goes stale.
		append(inside, "link", "add", n.Bridge, "mtu", mtu, "address", "0a:58:0a:f4:00:01", "type", "bridge"),
		append(inside, "addr", "add", n.BridgeAddress+"/"+strconv.Itoa(n.PodBits), "dev", n.Bridge),
		append(inside, "link", "set", n.Bridge, "up"),
	}
	for _, route := range n.Routes {
		commands = append(commands, []string{"route", "add", route, "via", n.NodeLink})
	}
	for _, arguments := range commands {
		if err := Run(ctx, "ip", arguments...); err != nil {
			return err
		}
	}
	// Replies between pods of one bridge must pass the service rules.
	err := n.Within(func() error {
		if err := SetSysctl("net.ipv4.ip_forward", "1"); err != nil {
			return err
		}
		if Exists(sysctlPath("net.bridge.bridge-nf-call-iptables")) {
			return SetSysctl("net.bridge.bridge-nf-call-iptables", "1")
		}
		return nil
	})
	if err != nil {
		return err
	}
	return n.hostRules(ctx)
}

// hostRules lets the namespace reach what the host reaches.
func (n Network) hostRules(ctx context.Context) error {
	if err := SetSysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	arguments := []string{
		"add table ip " + n.table(),
		"add chain ip " + n.table() + " postrouting { type nat hook postrouting priority srcnat; }",
	}
	for _, source := range append([]string{n.NodeLink}, n.Routes...) {
		arguments = append(arguments, fmt.Sprintf("add rule ip %s postrouting ip saddr %s oifname != %q masquerade", n.table(), source, n.HostLink()))
	}
	for _, rule := range arguments {
		if err := Run(ctx, "nft", rule); err != nil {
			return err
		}
	}
	// A firewall that drops forwarded packets (Docker sets one up) would drop
	// ours too; an accept in a table of our own cannot overrule it.
	if policy, err := Output(ctx, "iptables", "-S", "FORWARD"); err == nil && strings.Contains(policy, "-P FORWARD DROP") {
		for _, side := range []string{"-i", "-o"} {
			if err := Run(ctx, "iptables", "-I", "FORWARD", side, n.HostLink(), "-j", "ACCEPT"); err != nil {
				return err
			}
		}
	}
	return nil
}

// Down takes everything away that Up made, in whatever state it is.
func (n Network) Down(ctx context.Context) error {
	if policy, err := Output(ctx, "iptables", "-S", "FORWARD"); err == nil {
		for _, side := range []string{"-i", "-o"} {
			if strings.Contains(policy, "-A FORWARD "+side+" "+n.HostLink()+" -j ACCEPT") {
				if err := Run(ctx, "iptables", "-D", "FORWARD", side, n.HostLink(), "-j", "ACCEPT"); err != nil {
					return err
				}
			}
		}
	}
	if Run(ctx, "nft", "list", "table", "ip", n.table()) == nil {
		if err := Run(ctx, "nft", "delete", "table", "ip", n.table()); err != nil {
			return err
		}
	}
	if Exists(filepath.Join("/sys/class/net", n.HostLink())) {
		if err := Run(ctx, "ip", "link", "del", n.HostLink()); err != nil {
			return err
		}
	}
	if !Exists(n.Path()) {
		return nil
	}
	return Run(ctx, "ip", "netns", "del", n.Name)
}

// Within runs a function on a thread inside the namespace. Sockets that it
// opens stay in there.
func (n Network) Within(do func() error) error {
	result := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with this goroutine, and no
		// other work can land in the wrong namespace.
		runtime.LockOSThread()
		result <- func() error {
			file, err := os.Open(n.Path())
			if err != nil {
				return err
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter %s: %w", n.Path(), err)
			}
			return do()
		}()
	}()
	return <-result
}

// DialContext connects from inside the namespace to an address given as number.
func (n Network) DialContext(_ context.Context, network, address string) (net.Conn, error) {
	var connection net.Conn
	err := n.Within(func() (err error) {
		connection, err = net.DialTimeout(network, address, 2*time.Second)
		return err
	})
	return connection, err
}

// UplinkMTU gives the smallest packet size of the host's links: a larger one
// inside would lose packets on the way out.
func UplinkMTU() int {
	smallest := 1500
	links, err := net.Interfaces()
	if err != nil {
		return smallest
	}
	for _, link := range links {
		if link.Flags&net.FlagUp != 0 && link.Flags&net.FlagLoopback == 0 && link.MTU >= 1280 {
			smallest = min(smallest, link.MTU)
		}
	}
	return smallest
}
