// Enrolment: a one-time token in, an identity in the state directory out.
#pragma once

#include <string>

#include "agent/state_dir.h"
#include "base/clock.h"
#include "base/status.h"

namespace tidemark::agent {

struct EnrollRequest {
  std::string token;
  std::string address;      // empty: the token's
  std::string name;         // empty: what the server kept, or the host name
  bool replace = false;     // an enrolment that is there may be replaced
  std::string fingerprint;  // 32 bytes
};
struct Enrolled {
  MachineId machine;
  std::string name;
  std::string server;
  WallMicros certificate_expires_us = 0;
};

// Makes a key, asks the server for a certificate, checks what came, and writes key.pem, certificate.pem, ca.pem and
// agent.toml (an existing one keeps everything but server and name). The certificate is written last: a cut leaves
// either an enrolment or none. The memory of another machine is removed. The caller holds the state directory's lock.
Result<Enrolled> enroll(const StateDir& dir, const EnrollRequest& request);

}  // namespace tidemark::agent
