"""What curls from 7.74 to 8.23 said of the same transfers, recorded from them: was anything of the request sent?

Recorded 2026-11 with Debian's curl in chroots of bullseye, bookworm, trixie and sid, against servers on loopback; the
request was a POST with a body of 19 bytes. A row: version, exit code, write-out line, first line of standard error.
"""
from __future__ import annotations

import os
import socket
import tempfile
import threading
import unittest
from pathlib import Path

from support import KEY, ProgramCase, judged, program

RECORDED = """
# name not found
7.74.0|6|000 000 0 0.000000 0 0|curl: (6) Could not resolve host: nothing.invalid
7.88.1|6|000 000 0 0.000000 0 0|curl: (6) Could not resolve host: nothing.invalid
8.14.1|6|000 000 0 0.000000 0 0|curl: (6) Could not resolve host: nothing.invalid
8.23.0|6|000 000 0 0.000823 0 0|curl: (6) Could not resolve host: nothing.invalid
# refused
7.74.0|7|000 000 0 0.000000 0 0|curl: (7) Failed to connect to 127.0.0.1 port 54199: Connection refused
7.88.1|7|000 000 0 0.000000 0 0|curl: (7) Failed to connect to 127.0.0.1 port 33807 after 0 ms: Couldn't c
8.14.1|7|000 000 0 0.000000 0 0|curl: (7) Failed to connect to 127.0.0.1 port 52295 after 0 ms: Could not
8.23.0|7|000 000 0 0.000134 0 0|curl: (7) Failed to connect to 127.0.0.1:33007 after 0 ms: Could not conne
# no connection in time, max-time
7.74.0|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1000 milliseconds
7.88.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1001 milliseconds
8.14.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1006 milliseconds
8.23.0|28|000 000 0 1.001190 0 0|curl: (28) Connection timed out after 1001 milliseconds
# no connection in time, connect-timeout
7.74.0|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1000 milliseconds
7.88.1|28|000 000 0 0.000000 0 0|curl: (28) Failed to connect to 127.0.0.1 port 47535 after 1000 ms: Timeou
8.14.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1015 milliseconds
8.23.0|28|000 000 0 1.002389 0 0|curl: (28) Connection timed out after 1002 milliseconds
# tls to a plain port
7.74.0|28|000 000 0 0.000000 0 0|curl: (28) Operation timed out after 20000 milliseconds with 0 out of 0 by
7.88.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 20000 milliseconds
8.14.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 20001 milliseconds
8.23.0|28|000 000 0 20.003229 0 0|curl: (28) Connection timed out after 20001 milliseconds
# tls silence
7.74.0|28|000 000 0 0.000000 0 0|curl: (28) Operation timed out after 1000 milliseconds with 0 out of 0 byt
7.88.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1000 milliseconds
8.14.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1004 milliseconds
8.23.0|28|000 000 0 1.001884 0 0|curl: (28) Connection timed out after 1001 milliseconds
# tls closed in handshake
7.74.0|35|000 000 0 0.000000 0 0|curl: (35) OpenSSL SSL_connect: SSL_ERROR_SYSCALL in connection to 127.0.0
7.88.1|35|000 000 0 0.000000 0 0|curl: (35) OpenSSL SSL_connect: SSL_ERROR_SYSCALL in connection to 127.0.0
8.14.1|35|000 000 0 0.000000 0 0|curl: (35) Recv failure: Connection reset by peer
8.23.0|35|000 000 0 0.011267 0 0|curl: (35) Recv failure: Connection reset by peer
# tls reset
7.74.0|7|000 000 0 0.000000 0 0|curl: (7) Failed to connect to 127.0.0.1 port 44509: Connection reset by p
7.88.1|35|000 000 0 0.000000 0 0|curl: (35) Send failure: Connection reset by peer
8.14.1|35|000 000 0 0.000000 0 0|curl: (35) Send failure: Connection reset by peer
8.23.0|35|000 000 0 0.021413 0 0|curl: (35) Send failure: Connection reset by peer
# untrusted
7.74.0|60|000 000 0 0.000000 0 0|curl: (60) SSL certificate problem: self signed certificate
7.88.1|60|000 000 0 0.000000 0 0|curl: (60) SSL certificate problem: self-signed certificate
8.14.1|60|000 000 0 0.000000 0 0|curl: (60) SSL certificate problem: self-signed certificate
8.23.0|60|000 000 0 0.027115 0 0|curl: (60) SSL certificate OpenSSL verify result: self-signed certificate
# cacert missing
7.74.0|77|000 000 0 0.000000 0 0|curl: (77) error setting certificate verify locations:  CAfile: /nonexiste
7.88.1|77|000 000 0 0.000000 0 0|curl: (77) error setting certificate file: /nonexistent
8.14.1|77|000 000 0 0.000000 0 0|curl: (77) error setting certificate file: /nonexistent
8.23.0|2||curl: The file '/nonexistent' provided t // curl: try 'curl --help' or 'curl --manual' for more information
# proxy name not found
7.74.0|5|000 000 0 0.000000 0 0|curl: (5) Could not resolve proxy: nothing.invalid
7.88.1|5|000 000 0 0.000000 0 0|curl: (5) Could not resolve proxy: nothing.invalid
8.14.1|5|000 000 0 0.000000 0 0|curl: (5) Could not resolve proxy: nothing.invalid
8.23.0|5|000 000 0 0.002735 0 0|curl: (5) Could not resolve proxy: nothing.invalid
# proxy refused
7.74.0|7|000 000 0 0.000000 0 0|curl: (7) Failed to connect to 127.0.0.1 port 44759: Connection refused
7.88.1|7|000 000 0 0.000000 0 0|curl: (7) Failed to connect to 127.0.0.1 port 41835 after 0 ms: Couldn't c
8.14.1|7|000 000 0 0.000000 0 0|curl: (7) Failed to connect to 127.0.0.1 port 48431 after 0 ms: Could not
8.23.0|7|000 000 0 0.000221 0 0|curl: (7) Failed to connect to relay.invalid:443 over proxy 127.0.0.1 afte
# proxy no connection in time
7.74.0|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1001 milliseconds
7.88.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1001 milliseconds
8.14.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1000 milliseconds
8.23.0|28|000 000 0 1.001728 0 0|curl: (28) Connection timed out after 1001 milliseconds
# proxy says 403
7.74.0|56|000 403 0 0.000000 0 118|curl: (56) Received HTTP code 403 from proxy after CONNECT
7.88.1|56|000 403 0 0.000000 0 118|curl: (56) CONNECT tunnel failed, response 403
8.14.1|56|000 403 0 0.000000 0 0|curl: (56) CONNECT tunnel failed, response 403
8.23.0|7|000 403 0 0.002978 0 0|curl: (7) CONNECT tunnel failed, response 403
# proxy says 407
7.74.0|56|000 407 0 0.000000 0 118|curl: (56) Received HTTP code 407 from proxy after CONNECT
7.88.1|56|000 407 0 0.000000 0 118|curl: (56) CONNECT tunnel failed, response 407
8.14.1|56|000 407 0 0.000000 0 0|curl: (56) CONNECT tunnel failed, response 407
8.23.0|7|000 407 0 0.000795 0 0|curl: (7) CONNECT tunnel failed, response 407
# proxy says 501
7.74.0|56|000 501 0 0.000000 0 118|curl: (56) Received HTTP code 501 from proxy after CONNECT
7.88.1|56|000 501 0 0.000000 0 118|curl: (56) CONNECT tunnel failed, response 501
8.14.1|56|000 501 0 0.000000 0 0|curl: (56) CONNECT tunnel failed, response 501
8.23.0|7|000 501 0 0.000637 0 0|curl: (7) CONNECT tunnel failed, response 501
# proxy silent
7.74.0|28|000 000 0 0.000000 0 118|curl: (28) Operation timed out after 1000 milliseconds with 0 out of 0 byt
7.88.1|28|000 000 0 0.000000 0 118|curl: (28) Connection timed out after 1001 milliseconds
8.14.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1002 milliseconds
8.23.0|28|000 000 0 1.001560 0 0|curl: (28) Connection timed out after 1001 milliseconds
# proxy silent after CONNECT
7.74.0|28|000 000 0 0.000000 0 118|curl: (28) Operation timed out after 1001 milliseconds with 0 out of 0 byt
7.88.1|28|000 000 0 0.000000 0 118|curl: (28) Connection timed out after 1001 milliseconds
8.14.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1001 milliseconds
8.23.0|28|000 000 0 1.001520 0 0|curl: (28) Connection timed out after 1001 milliseconds
# proxy closes
7.74.0|56|000 000 0 0.000000 0 118|curl: (56) Proxy CONNECT aborted
7.88.1|56|000 000 0 0.000000 0 118|curl: (56) Proxy CONNECT aborted
8.14.1|56|000 000 0 0.000000 0 0|curl: (56) Proxy CONNECT aborted
8.23.0|56|000 000 0 0.000936 0 0|curl: (56) Proxy CONNECT aborted
# proxy resets
7.74.0|56|000 000 0 0.000000 0 118|curl: (56) Recv failure: Connection reset by peer
7.88.1|56|000 000 0 0.000000 0 118|curl: (56) Recv failure: Connection reset by peer
8.14.1|56|000 000 0 0.000000 0 0|curl: (56) Recv failure: Connection reset by peer
8.23.0|7|000 000 0 0.000766 0 0|curl: (7) Failed to connect to relay.invalid:443 over proxy 127.0.0.1 afte
# proxy speaks no http
7.74.0|56|000 000 0 0.000000 0 118|curl: (56) Received HTTP code 0 from proxy after CONNECT
7.88.1|56|000 000 0 0.000000 0 118|curl: (56) CONNECT tunnel failed, response 0
8.14.1|56|000 000 0 0.000000 0 0|curl: (56) CONNECT tunnel failed, response 0
8.23.0|8|000 000 0 0.002696 0 0|curl: (8) Invalid response header
# tunnel, tls silence
7.74.0|28|000 200 0 0.000000 0 118|curl: (28) Operation timed out after 1001 milliseconds with 0 out of 0 byt
7.88.1|28|000 200 0 0.000000 0 118|curl: (28) Connection timed out after 1000 milliseconds
8.14.1|28|000 200 0 0.000000 0 0|curl: (28) Connection timed out after 1005 milliseconds
8.23.0|28|000 200 0 1.002058 0 0|curl: (28) Connection timed out after 1001 milliseconds
# tunnel, closed
7.74.0|35|000 200 0 0.000000 0 118|curl: (35) OpenSSL SSL_connect: SSL_ERROR_SYSCALL in connection to relay.i
7.88.1|35|000 200 0 0.000000 0 118|curl: (35) OpenSSL SSL_connect: SSL_ERROR_SYSCALL in connection to relay.i
8.14.1|35|000 200 0 0.000000 0 0|curl: (35) TLS connect error: error:0A000126:SSL routines::unexpected eof
8.23.0|35|000 200 0 0.010494 0 0|curl: (35) TLS connect error: error:0A000126:SSL routines::unexpected eof
# tunnel, untrusted
7.74.0|60|000 200 0 0.000000 0 118|curl: (60) SSL certificate problem: self signed certificate
7.88.1|60|000 200 0 0.000000 0 118|curl: (60) SSL certificate problem: self-signed certificate
8.14.1|60|000 200 0 0.000000 0 0|curl: (60) SSL certificate problem: self-signed certificate
8.23.0|60|000 200 0 0.011320 0 0|curl: (60) SSL certificate OpenSSL verify result: self-signed certificate
# tunnel, no answer in time
7.74.0|28|000 200 19 0.004615 0 271|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
7.88.1|28|000 200 19 0.005847 0 271|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
8.14.1|28|000 200 19 0.021647 0 153|curl: (28) Operation timed out after 1002 milliseconds with 0 bytes receiv
8.23.0|28|000 200 19 0.010081 0 153|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
# tunnel, closed after the request
7.74.0|52|000 200 19 0.004279 0 271|curl: (52) Empty reply from server
7.88.1|52|000 200 19 0.007304 0 271|curl: (52) Empty reply from server
8.14.1|56|000 200 19 0.008984 0 153|curl: (56) OpenSSL SSL_read: OpenSSL/3.5.9: error:0A000126:SSL routines::u
8.23.0|56|000 200 19 0.004912 0 153|curl: (56) OpenSSL SSL_read: OpenSSL/3.6.5: error:0A000126:SSL routines::u
# tunnel, 200
7.74.0|0|200 200 19 0.003577 5 271|
7.88.1|0|200 200 19 0.007925 5 271|
8.14.1|0|200 200 19 0.012602 5 153|
8.23.0|0|200 200 19 0.005432 5 153|
# plain proxy 407
7.74.0|0|407 000 19 0.000145 2 201|
7.88.1|0|407 000 19 0.000213 2 201|
8.14.1|0|407 000 19 0.000214 2 201|
8.23.0|0|407 000 19 0.000271 2 201|
# plain proxy silent
7.74.0|28|000 000 19 0.000501 0 201|curl: (28) Operation timed out after 1000 milliseconds with 0 bytes receiv
7.88.1|28|000 000 19 0.000586 0 201|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
8.14.1|28|000 000 19 0.012553 0 201|curl: (28) Operation timed out after 1008 milliseconds with 0 bytes receiv
8.23.0|28|000 000 19 0.000576 0 201|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
# plain proxy no connection in time
7.74.0|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1001 milliseconds
7.88.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1001 milliseconds
8.14.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1012 milliseconds
8.23.0|28|000 000 0 1.001362 0 0|curl: (28) Connection timed out after 1001 milliseconds
# socks proxy silent
7.74.0|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1000 milliseconds
7.88.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1001 milliseconds
8.14.1|28|000 000 0 0.000000 0 0|curl: (28) Connection timed out after 1001 milliseconds
8.23.0|28|000 000 0 1.001899 0 0|curl: (28) Connection timed out after 1001 milliseconds
# socks proxy closes
7.74.0|97|000 000 0 0.000000 0 0|curl: (97) Connection to proxy closed
7.88.1|97|000 000 0 0.000000 0 0|curl: (97) Recv failure: Connection reset by peer
8.14.1|97|000 000 0 0.000000 0 0|curl: (97) Recv failure: Connection reset by peer
8.23.0|97|000 000 0 0.000824 0 0|curl: (97) Failed to receive SOCKS response, proxy closed connection
# no answer in time
7.74.0|28|000 000 19 0.000668 0 155|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
7.88.1|28|000 000 19 0.000465 0 155|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
8.14.1|28|000 000 19 0.000221 0 155|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
8.23.0|28|000 000 19 0.000327 0 155|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
# never read
7.74.0|28|000 000 19 0.000602 0 155|curl: (28) Operation timed out after 1000 milliseconds with 0 bytes receiv
7.88.1|28|000 000 19 0.000528 0 155|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
8.14.1|28|000 000 19 0.000208 0 155|curl: (28) Operation timed out after 1006 milliseconds with 0 bytes receiv
8.23.0|28|000 000 19 0.000657 0 155|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
# no answer in time tls
7.74.0|28|000 000 19 0.003091 0 155|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
7.88.1|28|000 000 19 0.004676 0 155|curl: (28) Operation timed out after 1003 milliseconds with 0 bytes receiv
8.14.1|28|000 000 19 0.057622 0 155|curl: (28) Operation timed out after 1002 milliseconds with 0 bytes receiv
8.23.0|28|000 000 19 0.005090 0 155|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
# closed after the request
7.74.0|52|000 000 19 0.000568 0 155|curl: (52) Empty reply from server
7.88.1|52|000 000 19 0.000632 0 155|curl: (52) Empty reply from server
8.14.1|52|000 000 19 0.000197 0 155|curl: (52) Empty reply from server
8.23.0|52|000 000 19 0.000282 0 155|curl: (52) Empty reply from server
# closed after the request tls
7.74.0|52|000 000 19 0.002989 0 155|curl: (52) Empty reply from server
7.88.1|52|000 000 19 0.011303 0 155|curl: (52) Empty reply from server
8.14.1|56|000 000 19 0.046714 0 155|curl: (56) OpenSSL SSL_read: OpenSSL/3.5.9: error:0A000126:SSL routines::u
8.23.0|56|000 000 19 0.006421 0 155|curl: (56) OpenSSL SSL_read: OpenSSL/3.6.5: error:0A000126:SSL routines::u
# reset after the head
7.74.0|56|000 000 19 0.000524 0 155|curl: (56) Recv failure: Connection reset by peer
7.88.1|56|000 000 19 0.001567 0 155|curl: (56) Recv failure: Connection reset by peer
8.14.1|56|000 000 19 0.006960 0 155|curl: (56) Recv failure: Connection reset by peer
8.23.0|56|000 000 19 0.000308 0 155|curl: (56) Recv failure: Connection reset by peer
# no http
7.74.0|1|000 000 19 0.000132 0 155|curl: (1) Received HTTP/0.9 when not allowed
7.88.1|1|000 000 19 0.000590 0 155|curl: (1) Received HTTP/0.9 when not allowed
8.14.1|1|000 000 19 0.000222 0 155|curl: (1) Received HTTP/0.9 when not allowed
8.23.0|1|000 000 19 0.000468 0 155|curl: (1) Received HTTP/0.9 when not allowed
# 200
7.74.0|0|200 000 19 0.000150 5 155|
7.88.1|0|200 000 19 0.000712 5 155|
8.14.1|0|200 000 19 0.000200 5 155|
8.23.0|0|200 000 19 0.000914 5 155|
# 200 tls
7.74.0|0|200 000 19 0.003798 5 155|
7.88.1|0|200 000 19 0.006888 5 155|
8.14.1|0|200 000 19 0.061707 5 155|
8.23.0|0|200 000 19 0.006042 5 155|
# broken off
7.74.0|18|200 000 19 0.000227 5 155|curl: (18) transfer closed with 45 bytes remaining to read
7.88.1|18|200 000 19 0.000498 5 155|curl: (18) transfer closed with 45 bytes remaining to read
8.14.1|18|200 000 19 0.000297 5 155|curl: (18) end of response with 45 bytes missing
8.23.0|18|200 000 19 0.000258 5 155|curl: (18) end of response with 45 bytes missing
# scheme
7.74.0|1|000 000 0 0.000000 0 0|curl: (1) Protocol "ftp" not supported or disabled in libcurl
7.88.1|1|000 000 0 0.000000 0 0|curl: (1) Protocol "ftp" not supported or disabled in libcurl
8.14.1|1|000 000 0 0.000000 0 0|curl: (1) Protocol "ftp" disabled
8.23.0|1|000 000 0 0.000016 0 0|curl: (1) Protocol "ftp" is disabled
# bad url
7.74.0|3|000 000 0 0.000000 0 0|curl: (3) URL using bad/illegal format or missing URL
7.88.1|3|000 000 0 0.000000 0 0|curl: (3) URL using bad/illegal format or missing URL
8.14.1|3|000 000 0 0.000000 0 0|curl: (3) URL rejected: Port number was not a decimal number between 0 and
8.23.0|3|000 000 0 0.000009 0 0|curl: (3) URL rejected: Port number was not a decimal number between 0 and
# missing body
8.14.1|26||curl: option -K: error encountered when  // curl: try 'curl --help' or 'curl --manual' for more information
8.23.0|26||curl: Failed to open /tmp/none // curl:  // curl: try 'curl --help' or 'curl --manual' for more information
# bad option
8.14.1|26||curl: option -K: error encountered when  // curl: try 'curl --help' or 'curl --manual' for more information
8.23.0|2||curl: <stdin>:7 config file option 'unhe // curl: try 'curl --help' or 'curl --manual' for more information
# big body reset
7.74.0|55|000 000 1048576 0.000235 0 142|curl: (55) Send failure: Connection reset by peer
7.88.1|55|000 000 786432 0.000193 0 142|curl: (55) Send failure: Connection reset by peer
8.14.1|56|000 000 2621298 0.013403 0 2621440|curl: (56) Recv failure: Connection reset by peer
8.23.0|56|000 000 2621298 0.000523 0 2621440|curl: (56) Recv failure: Connection reset by peer
# big body silent
7.74.0|28|000 000 2883584 0.000544 0 142|curl: (28) Operation timed out after 1000 milliseconds with 0 bytes receiv
7.88.1|28|000 000 2883584 0.000276 0 142|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes receiv
8.14.1|28|000 000 2883442 0.000460 0 2883584|curl: (28) Operation timed out after 1011 milliseconds with 0 bytes recei
8.23.0|28|000 000 2883442 0.000672 0 2883584|curl: (28) Operation timed out after 1001 milliseconds with 0 bytes recei
# disk
7.74.0|0|200 000 19 0.000502 5 155|(23) Failed writing body
7.88.1|23|200 000 19 0.000506 5 155|curl: (23) Failed writing body
8.23.0|23|200 000 19 0.000252 5 155|curl: curl: (23) Failed writing body
"""
NEVER_SENT = {name for name in (line[2:] for line in RECORDED.splitlines() if line.startswith("# ")) if name.startswith(
    ("name", "refused", "no connection", "tls", "untrusted", "cacert", "proxy", "tunnel, tls", "tunnel, closed",
     "tunnel, untrusted", "plain proxy no", "socks", "scheme", "bad",
     "missing"))} - {"tunnel, closed after the request"}
REFUSED_BY_PROXY = {"proxy says 403", "proxy says 407", "proxy says 501", "plain proxy 407"}


class RecordedOutcomesTest(unittest.TestCase):
    """read_outcome and the judgement, for every recorded transfer."""

    def rows(self) -> list[tuple[str, str, int, program.Outcome]]:
        """(scenario, version, curl's exit code, what is read)."""
        found, scenario = [], ""
        with tempfile.TemporaryDirectory() as folder:
            exchange = os.path.join(folder, "1")
            for line in RECORDED.strip().splitlines():
                if line.startswith("# "):
                    scenario = line[2:]
                    continue
                version, code, outcome, errors = line.split("|", 3)
                Path(exchange + ".outcome").write_text(outcome + "\n" if outcome else "")
                Path(exchange + ".errors").write_text(errors.replace(" // ", "\n") + "\n" if errors else "")
                found.append((scenario, version, int(code), program.read_outcome(exchange)))
        return found

    def test_what_was_never_sent_is_known(self) -> None:
        for scenario, version, _, outcome in self.rows():
            with self.subTest(scenario, curl=version):
                self.assertEqual(outcome.sent, scenario not in NEVER_SENT)

    def test_exit_codes_are_read(self) -> None:
        for scenario, version, code, outcome in self.rows():
            with self.subTest(scenario, curl=version):
                odd = {"missing body": 2, "bad option": 2, "disk": 23}  # 8.x names no code, 7.74 exits with 0
                self.assertEqual(outcome.exit_code, odd.get(scenario, code))

    def test_judgement(self) -> None:
        asked = program.Request("POST", "https://relay.invalid/v1/images/generations")
        for scenario, version, _, outcome in self.rows():
            with self.subTest(scenario, curl=version):
                response = program.Response("/answer", outcome.status, {}, {} if outcome.status else None)
                failure, _ = judged(asked, outcome, response, 1)
                free = scenario in NEVER_SENT or scenario == "plain proxy 407"
                self.assertEqual(failure.billed, "no" if free else "maybe", failure.message)
                self.assertEqual("the proxy refused" in failure.message, scenario in REFUSED_BY_PROXY, failure.message)
                if "in time" in scenario:
                    words = "could not connect in time" if free else "no reply within"
                    self.assertIn(words, failure.message)

    def test_older_and_broken_lines_do_not_crash(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            exchange = os.path.join(folder, "1")
            for line, sent in (("000 000 0 0.002 0", True), ("000 000 0 0.000 0", False), ("000 000 7 0.000 0", True),
                               ("200 000 10 0.1 5 99 1 2", True), ("200 00", True), ("", True)):
                with self.subTest(line):
                    Path(exchange + ".outcome").write_text(line)
                    Path(exchange + ".errors").write_text("")
                    outcome = program.read_outcome(exchange)
                    self.assertEqual((outcome.sent, outcome.exit_code), (sent, 0 if len(line.split()) > 4 else -9))

    def test_all_variables_exist_in_the_oldest_curl(self) -> None:
        old = {"http_code", "http_connect", "size_upload", "time_pretransfer", "size_download", "size_request",
               "time_connect", "time_appconnect", "num_connects"}  # curl 7.68's manual
        self.assertLessEqual(set(program.re.findall(r"%{(\w+)}", program.WRITE_OUT)), old)


class ProxyOnThisMachineTest(ProgramCase):
    """The curl of this machine, whichever it is, with proxies that do not let the request through."""

    def proxy(self, answer: bytes) -> str:
        """The address of a proxy that answers everything so; nothing: it stays silent. It counts in self.asked."""
        self.asked = 0
        listener = socket.create_server(("127.0.0.1", 0))
        done = threading.Event()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                self.asked += 1
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)
                    done.wait(0 if answer else 20)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 20)
        self.addCleanup(listener.close)
        self.addCleanup(listener.shutdown, socket.SHUT_RDWR)
        self.addCleanup(done.set)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def through(self, proxy: str, base_url: str, *options: str) -> dict[str, object]:
        """The error of a request through a proxy."""
        config = self.write_config({"base_url": base_url, "api_key": KEY, "proxy": proxy})
        result = self.run_program("generate", "a fox", "--config", config, "--json", *options, env={"NO_PROXY": None})
        error = dict(result.json["error"])
        self.assertEqual((result.exit_code, error["billed"], error["kind"] in ("network", "timeout")), (6, "no", True),
                         error)
        return error

    def test_refusals_are_the_proxys_whatever_the_scheme(self) -> None:
        body = b'{"error": {"message": "log in", "code": "invalid_api_key"}}'
        refusal = b"HTTP/1.1 407 No\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        for base_url, options in (("https://relay.invalid/v1", ()), ("http://relay.invalid/v1", ("--allow-http",))):
            with self.subTest(base_url):
                error = self.through(self.proxy(refusal), base_url, *options)
                self.assertIn("the proxy refused", str(error["message"]))
                self.assertIn("Check the proxy's login and rules", str(error["hint"]))
                self.assertEqual((self.asked, error["next"], error["retryable"]), (1, "fix", False))

    def test_other_refusals_of_a_tunnel(self) -> None:
        """A person who refuses a host, in Claude Code's sandbox, is asked once; 5xx may pass."""
        for status in (403, 501):
            answer = b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status
            error = self.through(self.proxy(answer), "https://relay.invalid/v1")
            self.assertIn("the proxy refused", str(error["message"]))
            self.assertEqual((self.asked == 1, error["retryable"]), (status < 500, status >= 500))

    def test_silent_proxy_sends_nothing_on(self) -> None:
        error = self.through(self.proxy(b""), "https://relay.invalid/v1", "--timeout", "1")
        self.assertIn("could not connect in time", str(error["message"]))
