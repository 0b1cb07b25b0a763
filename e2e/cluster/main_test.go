package main

import (
	"slices"
	"testing"
)

func TestOwnFlagsEndWhereTheToolsBegin(t *testing.T) {
	for _, c := range []struct{ given, own, rest []string }{
		{[]string{"get", "pods", "--name", "x"}, nil, []string{"get", "pods", "--name", "x"}},
		{[]string{"--name", "two", "get"}, []string{"--name", "two"}, []string{"get"}},
		{[]string{"--state=/x/y", "--name", "two", "get"}, []string{"--state=/x/y", "--name", "two"}, []string{"get"}},
		{[]string{"--name"}, []string{"--name"}, nil},
	} {
		own, rest := ownFlags(c.given)
		if !slices.Equal(own, c.own) || !slices.Equal(rest, c.rest) {
			t.Errorf("%q: %q and %q", c.given, own, rest)
		}
	}
}

func TestEveryCommandOfTheHelpExists(t *testing.T) {
	all := commands()
	for _, name := range order {
		if all[name].run == nil || all[name].about == "" {
			t.Errorf("%s is listed and does nothing", name)
		}
	}
	if len(all) != len(order)+1 {
		t.Errorf("%d commands, %d in the help", len(all), len(order))
	}
}
