package config

import (
	"strings"
	"testing"
)

// TestMetricsRefuses: the page is on a loopback address or a Unix socket, or nowhere. The error says what to do
// instead.
func TestMetricsRefuses(t *testing.T) {
	const form = ":6: metrics.listen: should be a loopback address with a port"
	for add, want := range map[string]string{
		"listen = '0.0.0.0:9620'":       ":6: metrics.listen: 0.0.0.0 is not a loopback address, and the",
		"listen = '192.0.2.1:9620'":     "listen on 127.0.0.1:9620, and publish it through",
		"listen = '[2001:db8::1]:9620'": ":6: metrics.listen: 2001:db8::1 is not a loopback address",
		"listen = '[::]:9620'":          ":6: metrics.listen: :: is not a loopback address",
		"listen = '[::1%lo]:9620'":      form,
		"listen = ':9620'":              form,
		"listen = 'localhost:9620'":     form,
		"listen = '127.0.0.1:0'":        form,
		"listen = '127.0.0.1'":          form,
		"listen = 'unix:metrics.sock'":  `:6: metrics.listen: should be "unix:" and an absolute path`,
		"listen = 'unix:/run/spa/'":     `:6: metrics.listen: should be "unix:" and an absolute path`,

		"listen = 'unix:/" + strings.Repeat("a", 107) + "'": ":6: metrics.listen: is too long",
		"clients = true": ":6: metrics.clients: has no effect without metrics.listen",
	} {
		if _, err := loadText(t, least+"[metrics]\n"+add+"\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", add, err, want)
		}
	}
	for _, add := range []string{"listen = ''", "listen = '127.9.8.7:9620'", "listen = '[::1]:9620'",
		"listen = 'unix:/run/spa/metrics.sock'\nclients = true"} {
		if _, err := loadText(t, least+"[metrics]\n"+add+"\n"); err != nil {
			t.Errorf("%s: %v", add, err)
		}
	}
}
