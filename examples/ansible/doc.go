// Package ansible contains a playbook that sets up a gateway, and a test that runs it with the real Ansible.
package ansible
