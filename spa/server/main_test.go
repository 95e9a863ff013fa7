package server

import (
	"testing"
	"time"

	"sallyport/spa/action"
	"sallyport/spa/lab"
)

func TestMain(m *testing.M) {
	action.Serve()
	lab.Main(m)
}

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
