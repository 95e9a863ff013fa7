package server

import (
	"os"
	"time"

	"sallyport/spa/server/setup"
)

// openTaken opens the file that reports to the office which bundle is in force, while that can be done. Without it,
// only spa-fleet status knows less.
func (s *Server) openTaken(m *bundles) {
	path := m.config.Fleet.Taken
	var file *os.File
	err := setup.Either(path, func() (err error) { file, err = setup.OpenTaken(path); return err })()
	if err != nil {
		s.log.Error("cannot report to the office which bundle is in force: fix it, and restart the server", "error", err)
		return
	}
	m.taken = file
	s.keep(file)
}

// reportTaken reports which bundle is in force. The line before it was not longer: serials only rise.
func (s *Server) reportTaken(b *setup.Bundle, since time.Time) {
	m := s.fleet
	if m.taken == nil {
		return
	}
	line := b.Contents.Taken.Sign(b.Head, since).String() + "\n"
	if _, err := m.taken.WriteAt([]byte(line), 0); err != nil {
		s.log.Error("cannot report to the office which bundle is in force", "serial", b.Serial, "error", err)
	}
}
