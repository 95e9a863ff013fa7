/*
 * How long must the store remember? Members without memory of their own share a store whose entries expire.
 *
 * Time is in ticks. A packet is fresh while its stamp is within WINDOW of a member's clock, ends included. The clocks of
 * two members differ by up to OFFSET. Packet 0 is stamped STAMP, packet 1 is its retry: another nonce, the same request
 * id, stamped up to RETRY later. The attacker has both from the beginning (the client's clock may be ahead), and
 * delivers them to any member at any time. The store applies a request at any time after it was sent.
 *
 * The store applies each request once here: shared.pml has the other troubles.
 *
 * LEASE: how long the store keeps a nonce. IDLEASE: how long it keeps a request id.
 */
#define MEMBERS 2
#ifndef WINDOW
#define WINDOW 1
#endif
#ifndef OFFSET
#define OFFSET 1
#endif
#ifndef RETRY
#define RETRY 1
#endif
#ifndef LEASE
#define LEASE (2 * WINDOW + OFFSET + 1)
#endif
#ifndef IDLEASE
#define IDLEASE (2 * WINDOW + OFFSET + RETRY + 1)
#endif
#define STAMP (WINDOW + OFFSET)
#define END (STAMP + RETRY + WINDOW + 1)
#define NONE 2

byte now;
byte ahead[MEMBERS]; /* how far this member's clock is ahead of the slowest */
byte stamp[2];

byte nonceUntil[2], idUntil; /* 0: absent */

byte doing[MEMBERS] = NONE;
byte answer[MEMBERS];
#define WON 1
#define REPEAT 2

byte actsOfNonce[2], actsOfID, receipts[2];
bool S1_nonce_acts_once = true, S2_id_acts_once = true, S4_nonce_answered_once = true;

#define clock(m) (now + ahead[m])
#define recent(m, p) (clock(m) <= stamp[p] + WINDOW)
#define fresh(m, p) (clock(m) + WINDOW >= stamp[p] && recent(m, p))

/* undone: a command that is continued for longer than ids are kept was certainly not done, because no packet that was
 * stamped since its first can have been forgotten. */
#ifdef CONTINUED
#define undone(m, p) (p == 0 || stamp[0] + IDLEASE > clock(m) + WINDOW + OFFSET)
#else
#define undone(m, p) true
#endif

inline act(p) {
	actsOfNonce[p]++;
	actsOfID++;
#if !defined(ONLY) || ONLY == 1
	S1_nonce_acts_once = actsOfNonce[p] < 2;
	assert(S1_nonce_acts_once);
#endif
#if !defined(ONLY) || ONLY == 2
	S2_id_acts_once = actsOfID < 2;
	assert(S2_id_acts_once);
#endif
	actsOfNonce[p] = 1;
	actsOfID = 1
}

inline receipt(p) {
	receipts[p]++;
#if !defined(ONLY) || ONLY == 4
	S4_nonce_answered_once = receipts[p] < 2;
	assert(S4_nonce_answered_once);
#endif
	receipts[p] = 1
}

proctype Member(byte m) {
	do
	:: d_step { doing[m] == NONE && fresh(m, 0) -> doing[m] = 0 }
	:: d_step { doing[m] == NONE && fresh(m, 1) -> doing[m] = 1 }

	/* The store applies the transaction: each key is absent if its lease is over. */
	:: d_step { doing[m] != NONE && !answer[m] ->
		if
		:: now < nonceUntil[doing[m]] -> doing[m] = NONE
		:: else ->
			nonceUntil[doing[m]] = now + LEASE;
			if
			:: now < idUntil -> answer[m] = REPEAT
			:: else -> idUntil = now + IDLEASE; answer[m] = WON
			fi
		fi
	   }

	/* The answer arrives. */
	:: atomic { answer[m] ->
		if
#ifndef NO_RECHECK
		:: !recent(m, doing[m])
#endif
		:: answer[m] == WON && !undone(m, doing[m])
		:: else ->
			if
			:: answer[m] == WON -> act(doing[m])
			:: else
			fi;
			receipt(doing[m])
		fi;
		answer[m] = 0;
		doing[m] = NONE
	   }
	/* No answer, or a crash. */
	:: d_step { doing[m] != NONE -> doing[m] = NONE; answer[m] = 0 }
	od
}

proctype Clock() {
	do
	:: now < END -> now++
	:: else -> break
	od
}

init {
	atomic {
		stamp[0] = STAMP;
		if
		:: stamp[1] = STAMP
		:: stamp[1] = STAMP + RETRY
		fi;
		if
		:: ahead[0] = OFFSET
		:: skip
		fi;
		run Member(0);
		run Member(1);
		run Clock()
	}
}
