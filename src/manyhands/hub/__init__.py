"""The deciding process: control socket, journal, REST. It sees no tensor."""
