package capture

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// tap makes an interface of the host whose packets are not in one piece: of what is written, each further slice is a
// fragment of the kernel's buffer, as many network drivers deliver packets.
func tap(t *testing.T, h *lab.Host, name string) int {
	t.Helper()
	var fd int
	lab.Must(t, h.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		request := lab.Value(unix.NewIfreq(name))(t)
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_NAPI | unix.IFF_NAPI_FRAGS)
		if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		return err
	}))
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestScattered: a knock passes the gate and a forged packet does not, wherever the kernel's buffer is split.
func TestScattered(t *testing.T) {
	if unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK) != nil {
		lab.KernelLacks(t, "/dev/net/tun")
	}
	_, gateway := lab.Pair(t)
	fd := tap(t, gateway, "tap0")
	_, mac, err := gateway.Interface("tap0")
	lab.Must(t, err)
	in := injector{src: net.HardwareAddr{2, 0, 0, 0, 0, 9}, dst: mac}
	for _, mode := range []string{"none", "socket"} {
		s := read(t, listen(t, gateway, under(mode)))
		s.wantGate(t, mode)
		n := 0
		for _, to := range []netip.AddrPort{gateway4, gateway6} {
			for _, first := range []int{14, 18, 34, 42, 54, 62, 70, 80, 100} {
				n += 2
				for _, good := range []bool{false, true} {
					frame := in.frame(datagram(senderTo(to), to, sealed(n, 200, good)))
					lab.Value(unix.Writev(fd, [][]byte{frame[:first], frame[first:]}))(t)
				}
				p := s.expect(t)
				if mode == "none" {
					p = s.expect(t)
				}
				if !bytes.Equal(p.Data, sealed(n, 200, true)) {
					t.Errorf("gate %s: split at %d to %v: got another packet", mode, first, to)
				}
			}
		}
		lab.Must(t, s.Close())
	}
}
