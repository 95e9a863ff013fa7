package main

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"sallyport/spa/client"
)

// fetch prints the contents of a URL. The transport knocks for each new connection; requests that reuse a connection
// need no knock.
func fetch(ctx context.Context, door *client.Dialer, url string, out io.Writer) error {
	transport := &http.Transport{DialContext: door.DialContext}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	_, err = io.Copy(out, response.Body)
	return err
}
