package main

import (
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// chart is a plot with a line for each program.
type chart struct {
	file        string
	title, x, y string
	logX, logY  bool
	lines       []line
}

type line struct {
	name   string
	points plotter.XYs
}

// add adds a point to the line of a program.
func (c *chart) add(name string, x, y float64) {
	for i := range c.lines {
		if c.lines[i].name == name {
			c.lines[i].points = append(c.lines[i].points, plotter.XY{X: x, Y: y})
			return
		}
	}
	c.lines = append(c.lines, line{name, plotter.XYs{{X: x, Y: y}}})
}

// The size of a plot.
const (
	plotWidth  = 16 * vg.Centimeter
	plotHeight = 10 * vg.Centimeter
)

// save draws the chart as a PNG.
func (c *chart) save(path string) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title, c.x, c.y
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	if c.logX {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
	if c.logY {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	}
	p.BackgroundColor = color.White
	for i, l := range c.lines {
		drawn, marks, err := plotter.NewLinePoints(l.points)
		if err != nil {
			return fmt.Errorf("plotting %s: %w", l.name, err)
		}
		drawn.Color, marks.Color = plotutil.Color(i), plotutil.Color(i)
		drawn.Width, drawn.Dashes, marks.Shape = vg.Points(1.5), plotutil.Dashes(i), plotutil.Shape(i)
		p.Add(drawn, marks)
		p.Legend.Add(l.name, drawn, marks)
	}
	if c.logY {
		p.Y.Max *= 10 // room for the legend
	} else {
		p.Y.Min, p.Y.Max = 0, p.Y.Max*1.4
	}
	return p.Save(plotWidth, plotHeight, path)
}
