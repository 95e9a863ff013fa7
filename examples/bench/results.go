package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// results are the figures of a run: the rows of one table, and lines of plots.
type results struct {
	columns []string
	rows    []row
	charts  []*chart
}

type row struct {
	what  string
	cells map[string]string // by column
}

// put sets a cell, and adds its row and its column if they are new.
func (r *results) put(what, column, cell string) {
	if !slices.Contains(r.columns, column) {
		r.columns = append(r.columns, column)
	}
	i := slices.IndexFunc(r.rows, func(row row) bool { return row.what == what })
	if i < 0 {
		i = len(r.rows)
		r.rows = append(r.rows, row{what, make(map[string]string)})
	}
	r.rows[i].cells[column] = cell
}

// markdown returns the table. Its first line is the machine.
func (r *results) markdown(machine string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Results\n\n%s\n\n| |", machine)
	for _, column := range r.columns {
		b.WriteString(" " + column + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(r.columns)) + "\n")
	for _, row := range r.rows {
		b.WriteString("| " + row.what + " |")
		for _, column := range r.columns {
			cell := row.cells[column]
			if cell == "" {
				cell = "-"
			}
			b.WriteString(" " + cell + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// plot adds a chart, which its lines may be added to later.
func (r *results) plot(c *chart) *chart {
	r.charts = append(r.charts, c)
	return c
}

// write writes the table into a file, and the plots beside it.
func (r *results) write(dir, file, machine string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	errs := []error{os.WriteFile(filepath.Join(dir, file), []byte(r.markdown(machine)), 0o644)}
	for _, c := range r.charts {
		errs = append(errs, c.save(filepath.Join(dir, c.file)))
	}
	return errors.Join(errs...)
}
