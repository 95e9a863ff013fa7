package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"sallyport/spa/lab"
)

const (
	storeAddr = "192.0.2.1"
	storeHost = storeAddr + ":2379"
)

// store is an etcd with one member and its default settings, except for the quota: the default is full after eight
// publishes. It takes only clients with certificates. Here they all have one, which signs itself.
type store struct {
	daemon
	data, cert, key string
}

func startStore(dir string, on *lab.Host) (*store, error) {
	s := &store{data: filepath.Join(dir, "data"), cert: filepath.Join(dir, "tls.pem"), key: filepath.Join(dir, "tls.key")}
	if err := errors.Join(os.Mkdir(dir, 0o755), s.certify()); err != nil {
		return nil, err
	}
	url := "https://" + storeHost
	cmd := exec.Command("etcd", "--data-dir", s.data, "--listen-client-urls", url, "--advertise-client-urls", url,
		"--client-cert-auth", "--trusted-ca-file", s.cert, "--cert-file", s.cert, "--key-file", s.key,
		"--quota-backend-bytes", "8589934592")
	_, err := s.run(&network{gateway: on}, cmd, func() bool {
		return strings.Contains(s.log.String(), "ready to serve client requests")
	})
	return s, err
}

// certify makes the certificate and its key, which the agents' user must be able to read.
func (s *store) certify() error {
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IsCA: true,
		NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.ParseIP(storeAddr)}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &own.PublicKey, own)
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(s.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644),
		os.WriteFile(s.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o644))
}
