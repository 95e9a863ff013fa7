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
	"path/filepath"
	"time"
)

// certify makes an authority, with a certificate for each name in the stage's directory: those that etcd and its users
// need. Only etcd's has an address.
func (p *pair) certify(names ...string) error {
	authority, key, err := p.certificate(nil, nil, "ca")
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, _, err := p.certificate(authority, key, name); err != nil {
			return err
		}
	}
	return nil
}

// certificate makes NAME.pem and NAME.key, signed by an authority, or by itself.
func (p *pair) certificate(by *x509.Certificate, signer *ecdsa.PrivateKey, name string) (*x509.Certificate,
	*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	c := &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), SerialNumber: big.NewInt(time.Now().UnixNano()),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if name == "etcd" {
		c.IPAddresses = []net.IP{net.ParseIP(p.store.Addr4)}
	}
	if by == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		by, signer = c, key
	}
	signed, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, signer)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	path := filepath.Join(p.Dir, name)
	return c, key, errors.Join(
		os.WriteFile(path+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}), 0o644),
		os.WriteFile(path+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}
