// Whether a machine that says Hello is let in: a pure decision over its catalog record.
//
// The certificate's serials. One issued by renewal replaces another that the agent may still hold if the answer was
// lost, so the older one stays good ("superseded:SERIAL" in revoked_serials) until the newer one was shown; then, or
// when the machine is enrolled again, it is revoked ("SERIAL").
//
// A fingerprint that changed is a machine that was cloned or rebuilt: it is kept out, the record remembers it, and an
// administrator decides. The machine with the fingerprint on record goes on meanwhile.
#pragma once

#include <string>

#include "base/status.h"
#include "server/counters.h"
#include "storage/records.pb.h"
#include "wire/tidemark.pb.h"

namespace tidemark::server {

struct AdmitDecision {
  Status verdict;
  Refusal refusal = Refusal::other;  // when refused
  bool store = false;                // `record` differs from what is stored, also when refused
  storage::pb::MachineRecord record;
};
AdmitDecision decide_admission(const storage::pb::MachineRecord& record, const std::string& serial,
                               const pb::Hello& hello);

// A new certificate for a machine whose session showed `old_serial`.
void supersede_serial(storage::pb::MachineRecord& record, const std::string& old_serial, const std::string& new_serial);
// A machine enrolled anew: whatever was issued before is revoked.
void revoke_all_serials(storage::pb::MachineRecord& record);

}  // namespace tidemark::server
