// Package machine makes "virtual machines" out of Linux namespaces: each has its own network stack, address and host
// name, and runs processes under the users that it likes. Everything lives inside one outer set of namespaces (network,
// mount, process ids), so that nothing of it can be left behind: when the process that entered them ends, however it
// ends, the kernel kills what runs inside and drops the rest.
//
// A program calls Enter first. In the process that the user started, Enter starts the same program once more inside the
// new namespaces and returns its exit code; in that second process it returns a Host, on which machines are made:
//
//	host, code, err := machine.Enter(ctx, machine.Outside{})
//	if host == nil { os.Exit(code) } // the outer process: the inner one has ended
//	m, err := host.NewMachine("provider-1")
//	p, err := m.Start(machine.Command{Path: "/usr/bin/java", …})
//
// What needs the real network (building, downloading) is done before Enter. As root the namespaces are made directly and
// processes run under different users. As another user they are made inside a user namespace, in which there is one user
// only; see Interception for what that changes.
package machine
