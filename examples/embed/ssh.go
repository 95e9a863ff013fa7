package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"sallyport/keys/service"
	"sallyport/spa/client"
)

// login is a user's login to a server, and the file with the server's key.
type login struct{ user, key, known string }

// remote runs a command by ssh and prints its output.
func remote(ctx context.Context, door *client.Dialer, l login, command string, out io.Writer) error {
	config, err := l.config()
	if err != nil {
		return err
	}
	host, _, err := service.SplitAddress(door.Profile.Address)
	if err != nil {
		return err
	}
	address := net.JoinHostPort(host, "22")
	conn, err := door.DialContext(ctx, "tcp", address) // instead of net.Dial
	if err != nil {
		return err
	}
	defer conn.Close()
	sshConn, channels, requests, err := ssh.NewClientConn(conn, address, config)
	if err != nil {
		return err
	}
	session, err := ssh.NewClient(sshConn, channels, requests).NewSession()
	if err != nil {
		return err
	}
	defer session.Close()
	session.Stdout = out
	return session.Run(command)
}

func (l login) config() (*ssh.ClientConfig, error) {
	text, err := os.ReadFile(l.key)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.key, err)
	}
	known, err := knownhosts.New(l.known)
	if err != nil {
		return nil, err
	}
	return &ssh.ClientConfig{User: l.user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: known}, nil
}
