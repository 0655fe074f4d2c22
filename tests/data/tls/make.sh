#!/bin/sh
# Makes the certificates of this folder anew (needs the openssl program): an authority, one that nobody
# trusts, and servers' certificates with one key. They protect nothing: everybody has the key.
# Valid 2020-2120 (one: 2020-2021), so that no clock of a test machine matters.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/openssl.cnf" <<END
[ca]
default_ca = test
[test]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = CA:FALSE
extendedKeyUsage = serverAuth
authorityKeyIdentifier = keyid
subjectAltName = \${ENV::NAMES}
END
: >"$work/index"
export NAMES=

sign() { # name, end, further options
    name=$1 end=$2
    shift 2
    openssl ca -batch -notext -config "$work/openssl.cnf" -startdate 20200101000000Z -enddate "$end" \
        -in "$work/$name.csr" -out "$work/$name.pem" "$@"
}

key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

authority() { # name
    key "$work/$1.key"
    openssl req -new -key "$work/$1.key" -subj "/CN=Wardgate test $1" -out "$work/$1.csr"
    sign "$1" 21200101000000Z -selfsign -keyfile "$work/$1.key" -extensions authority
}

server() { # name, authority, end, names
    NAMES=$4
    openssl req -new -key server.key -subj "/CN=$1" -out "$work/$1.csr"
    sign "$1" "$3" -cert "$work/$2.pem" -keyfile "$work/$2.key" -extensions server
    cp "$work/$1.pem" "$1.pem"
}

good=DNS:app.internal,DNS:localhost,IP:127.0.0.1
authority ca
authority stranger
cp "$work/ca.pem" ca.pem
key server.key
server server ca 21200101000000Z "$good"
server other-name ca 21200101000000Z DNS:other.internal
server expired ca 20210101000000Z "$good"
server untrusted stranger 21200101000000Z "$good"
