#!/usr/bin/env bash
# Unpack the scripts pinned in package.json: MathJax and the renderer of ipywidgets into the folder $1, axe-core into $2.
# `npm pack` rather than `npm install`: the built files need none of the packages' own dependencies.
set -euo pipefail

target=$PWD/$1
tests=$PWD/$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

CHECK='const [, path, name] = process.argv, {readFileSync} = require("fs"), {createHash} = require("crypto")
const found = "sha512-" + createHash("sha512").update(readFileSync(path)).digest("base64")
if (found !== require("./package.json").integrity[name]) throw Error(`${name} is not the archive that package.json pins`)'

unpack() { # package name, folder in $work
    local version archive
    version=$(node -p "const p = require('./package.json'); ({ ...p.dependencies, ...p.devDependencies })['$1']")
    archive=$(npm pack --silent --prefer-offline --fetch-retries=1 --fetch-retry-mintimeout=1000 --pack-destination "$work" "$1@$version" 2>/dev/null)
    node -e "$CHECK" "$work/$archive" "$1"
    mkdir "$work/$2"
    tar -xzf "$work/$archive" -C "$work/$2" --strip-components=1
}

unpack mathjax mathjax
unpack @jupyter-widgets/html-manager html-manager
unpack axe-core axe-core

rm -rf "$target" "$tests"
mkdir -p "$target/mathjax/output/chtml" "$target/html-manager" "$tests"
(cd "$work/mathjax/es5" && cp -r tex-mml-chtml.js a11y input sre ui "$target/mathjax")
cp -r "$work/mathjax/es5/output/chtml/fonts" "$target/mathjax/output/chtml"
(cd "$work/html-manager/dist" && cp embed.js embed.js.LICENSE.txt ./*.woff ./*.woff2 "$target/html-manager")
cp "$work/axe-core/axe.min.js" "$work/axe-core/LICENSE" "$tests"
cp package.json "$target" # last: it marks the folder as complete
