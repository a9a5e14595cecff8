// Render a chart's templates with Go's text/template and sprig, as Helm does.
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go run render.go CHART < values.json
//
// Prints one JSON object: template -> text.  Debian: golang-go golang-github-masterminds-sprig-dev
// golang-github-ghodss-yaml-dev.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"github.com/ghodss/yaml"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	var data map[string]interface{}
	must(json.NewDecoder(os.Stdin).Decode(&data))
	all := template.New("chart").Option("missingkey=zero")
	functions := sprig.TxtFuncMap()
	functions["toYaml"] = func(v interface{}) string {
		text, err := yaml.Marshal(v)
		must(err)
		return strings.TrimSuffix(string(text), "\n")
	}
	functions["include"] = func(name string, v interface{}) (string, error) {
		var out bytes.Buffer
		err := all.ExecuteTemplate(&out, name, v)
		return out.String(), err
	}
	all.Funcs(functions)
	files, err := filepath.Glob(filepath.Join(os.Args[1], "templates", "*"))
	must(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(err)
		_, err = all.New("muslin/templates/" + filepath.Base(file)).Parse(string(text))
		must(err)
	}
	made := map[string]string{}
	for _, file := range files {
		var out bytes.Buffer
		data["Template"] = map[string]string{"BasePath": "muslin/templates"}
		must(all.ExecuteTemplate(&out, "muslin/templates/"+filepath.Base(file), data))
		made[filepath.Base(file)] = out.String()
	}
	must(json.NewEncoder(os.Stdout).Encode(made))
}
