// Package metrics contains alert rules and a dashboard for the metrics of a gateway, and tests that try them with the
// real Prometheus.
package metrics
