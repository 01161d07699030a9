"""Plots about friends for `lmcore.stories`, as data; more are in `lmcore.story_adventures`. To add one, add a `Plot`.

A plot's text is written as it will be read. A blank line ends a paragraph; `* ` begins a beat, and the lines under it
are other ways to tell that beat, of which one is chosen; a line indented further continues the one before it;
`[this|that]` is a choice inside a sentence. Any wording of a beat must fit any wording of the others. Slots are the
people `{hero}`, `{friend}` and `{adult}` with their pronouns (`lmcore.stories.Person`), `{trait}`, `{home}` and
whatever the plot draws: `{toy}`, `{toy.a}` with its article, `{toy.cap}` with a capital. A plot never spells out he,
she, his or her by itself.
"""

from typing import NamedTuple


class Plot(NamedTuple):
    """One kind of story."""

    name: str
    thread: str
    """The slot that runs through the story: named in its first half and again in its last third."""
    worlds: tuple[str, ...]
    draws: dict[str, str]
    """Slot → its options, parted by commas. Slots that are drawn together share an entry, parted by slashes."""
    text: str


COLOURS = "red, blue, green, yellow, orange, purple, pink, white, brown, golden, silver, gray"
BOTH = ("child", "animal")

FRIENDSHIPS = (
    Plot(
        "sharing",
        "treats",
        BOTH,
        {
            "bag/treats": "basket/berries, bag/cookies, box/plums, bowl/cherries, bag/nuts, plate/pancakes, "
            "basket/peaches, box/muffins, basket/pears",
            "loss": "fallen into the mud, rolled into the river, been eaten by a hungry goat, "
            "been taken by a big black bird",
            "seat": "tree, bench, rock, log, wall",
            "gift": "sang a funny song, told a story about a dragon, played a tune on a flute, did a silly dance",
        },
        """
* One day, {hero.his} {adult} gave {hero.him} a {bag} full of [sweet|fresh|yummy] {treats}.
  One [sunny|warm] day, {hero} and {hero.his} {adult} filled a [big|whole] {bag} with [sweet|fresh] {treats}.
* "These {treats} are all [for me|mine]," {hero} thought. {hero.He} wanted to eat every one.
  {hero} wanted to keep all the {treats} for {hero.himself}.

* {hero.He} took the {bag} outside and [sat down|found a quiet spot] by {seat.a}. Soon {hero.his} friend {friend.full}
    came by.
  {hero} was sitting by {seat.a} with the {bag} when {hero.his} friend {friend.full} [came along|walked up].

* "I am so hungry," said {friend} [in a small voice|sadly]. "My lunch has {loss}. May I have [some|a few] {treats}?"
  "May I have some of your {treats}, please?" asked {friend}. "My lunch has {loss}."

* "No," said {hero}, and {hero.he} [turned away|hid the {bag}]. {friend} [looked down|said nothing] and walked off.
  {hero} shook {hero.his} head and held the {bag} tight. {friend} went away with tears in {friend.his} eyes.
* {hero} ate and ate, but the {treats} did not taste [good|sweet] anymore. It was [lonely|no fun] to eat alone.
  But now {hero} did not feel happy. {hero.He} kept thinking of {friend}'s [sad|hungry] face.
* So {hero.he} picked up the {bag} and ran [after {friend}|to find {friend}].

* "I am sorry, {friend}," said {hero}. "I was [mean|not nice]. Please [come and eat|share] the {treats} with me."
  "Wait, {friend}!" called {hero}. "I am sorry. There are [enough|plenty of] {treats} for [both|the two] of us."

* They went back to the {seat} together and ate until the {bag} was [empty|almost empty]. To say thank you, {friend}
    {gift}.
  {friend} [smiled|was so glad]. They sat by the {seat} and ate {treats} together, and then {friend} {gift}.
* {hero} laughed and laughed. [Sharing made the {treats} taste better|The {treats} had never tasted so good].
  From then on, {hero} always [shared|liked to share] {hero.his} {treats}, because sharing made [them|everything]
    taste better.
  {hero} learned that {treats} are [sweeter|better] when you share them with a friend.
""",
    ),
    Plot(
        "building together",
        "made",
        BOTH,
        {
            "made/stuff/use": "tree house/boards and rope/watch the stars from it, "
            "raft/logs and rope/float on the pond, "
            "cart/boards and wheels/roll down the hill, hut/sticks and leaves/tell stories inside it, "
            "boat/planks and nails/sail across the lake, swing/rope and wood/swing up to the sky",
            "colour": COLOURS,
            "flag": "flag, star, flower, bird, sun, fish",
        },
        """
* {hero.He} had a big dream. {hero.He} wanted to [build|make] {made.a} and {use}.
  More than anything, {hero.he} wished for {made.a}, so that {hero.he} could {use}.
* So one [day|morning], {hero.he} [found|gathered|got] some {stuff} and began to work [all alone|all by {hero.himself}].
  One [bright|fine] day, {hero.he} carried {stuff} to a good [place|spot] and set to work [alone|by {hero.himself}].

* It was hard work. {hero} pushed and pulled and [tied|tapped], but then, crash! The {made} fell [apart|to pieces].
  By noon, the {made} was [almost done|nearly ready]. Then there was a loud crack, and it all fell [down|apart].
* {hero} [kicked a stone|threw down {hero.his} tools]. "I [will never finish it|cannot do it]," {hero.he}
    [sighed|thought].
  {hero.He} was so [angry|upset] that {hero.he} [wanted to stop|almost gave up].

* {hero.His} friend {friend.full} heard the noise. "[May|Can] I help?" asked {friend}. "You can hold, and I can
    [tie|fix]."
  "[I like your idea|That was a good try]," said {hero.his} friend {friend.full}. "[Let us try again|Let me help]. Two
    can do more than one."

* {hero} [wiped {hero.his} face|took a deep breath] and nodded. {friend} showed {hero.him} how to make each part strong.
  So they started again. They [talked|sang] and laughed, and this time they made each part [strong|tight|twice as
    strong].
* When the sun [was low|went down], the {made} was [finished|ready]. {friend} painted {colour.a} {flag} on it.
  At last, the {made} stood there, strong and [straight|fine]. On the side, they painted {colour.a} {flag}.

* "We made a {made}! Thank you, {friend}," said {hero}. "I could not have made it without you."
  "Look at our {made}!" [cried|shouted] {hero}. "Thank you for helping me, {friend}."

* Now {hero}'s dream came true. {hero.He} and {friend} could {use} [whenever they liked|every day].
  From then on, {hero} and {friend} met at the {made} with the {colour} {flag} every day to {use}.
* {hero} learned that hard work is [easier|lighter] with a friend.
  And each time {hero} saw the {colour} {flag} on the {made}, {hero.he} [smiled|thought of that day].
  The {made} was good, but [a good friend|building it together] was even better.
""",
    ),
    Plot(
        "a broken toy",
        "toy",
        BOTH,
        {
            "toy/part": "train/wheel, pony/leg, boat/sail, doll/arm, drum/strap, robot/arm, car/wheel, "
            "plane/wing, "
            "wagon/handle, puppet/leg, truck/door",
            "colour": COLOURS,
            "tool": "glue, tape, string, wire",
        },
        """
* Of all {hero.his} toys, {hero.he} liked {hero.his} {colour} {toy} best.
  {hero.He} had {colour.a} {toy}, and [nobody|no one] else was allowed to touch it.
* It was [old|small], but to {hero.him} it was [better|more special] than anything in the world.
  {hero.He} played with it every day [before lunch|after breakfast].

* One day, {hero.his} friend {friend.full} came to play. {friend} wanted to hold the {toy}, and {hero} said yes.
  One [cloudy|quiet] day, {hero} let {hero.his} friend {friend.full} play with the {toy} for the first time.
* But {friend} [tripped|slipped], and the {toy} fell to the floor. Snap! The {part} [broke|came] off.
  All was well until {friend} [dropped|bumped] it. There was a snap, and the {part} fell off.

* "Oh no! I am so sorry, {hero}," said {friend}. "I did not mean to break your {toy}."
  "I broke the {part}!" cried {friend}. "It was [an accident|not on purpose]. I am very sorry."

* {hero} wanted to shout. But {friend} looked so [sad|sorry] that {hero.he} [took a deep breath|counted to ten] and
    hugged {friend.him}.
  At first {hero} was angry. Then {hero.he} saw that {friend} was crying, and {hero.he} [felt calm|forgave
    {friend.him}].
* Together they took the {toy} to {hero}'s {adult}, who [was good at fixing things|could mend almost anything].
  They carried the {toy} and the {part} to {hero}'s {adult} and told {adult.him} everything.
* {hero.His} {adult} got some {tool}. {friend} held the {toy}, {hero} held the {part}, and soon it was [whole again|as
    good as new].
  {hero}'s {adult} showed them how to put the {part} back with some {tool}. [Slowly and carefully|Bit by bit], they
    mended it.

* "Thank you, {adult.cap}!" said {hero}. "[Now it works again|It looks wonderful]. Come, {friend}, you can go first!"
  "It is fixed!" [cheered|cried] {hero}. "Thank you, {adult.cap}. {friend}, would you like to play with it again?"

* This time {friend} was [careful|gentle], and they played with the {colour} {toy} until
    [supper|bedtime].
  So the friends took turns with the {colour} {toy} [all afternoon|until it was dark].
* {hero} learned that toys can be [mended|fixed], but friends are worth more than toys.
  You could still see a [thin|small] line on the {part}, but {hero} loved the {toy} even more.
""",
    ),
    Plot(
        "learning something new",
        "skill",
        BOTH,
        {
            "skill/together/place/fall/tip": "swim/swim/in the pond/went under with a splash/Kick your legs and "
            "keep your chin up, "
            "ride a bike/ride their bikes/on the path/tipped over with a bump/Look ahead and keep your feet moving, "
            "skate/skate/on the ice/slid and fell with a thump/Bend your knees and take small steps, "
            "whistle/whistle/by the fence/made only a funny puff of air/Make your mouth round and blow softly, "
            "fly a kite/fly their kites/on the hill/saw the kite drop to the ground/Run into the wind and let "
            "out the string, "
            "jump rope/jump rope/in the yard/tripped over the rope/Watch the rope and jump when it taps the ground",
            "day": "morning, afternoon, day, Sunday, Monday, quiet morning",
            "number": "three, four, five, six, seven",
        },
        """
* {hero.He} had one big wish. {hero.He} wanted to learn to {skill}.
  All {hero.his} friends could {skill}, but {hero} could not, and {hero.he} wanted to learn.
  Every day, {hero.he} watched the others {skill}. "I want to do that too," {hero.he} thought.

* So one {day}, {hero.he} went out to try it {place}. {hero.He} tried {number} times, but each time {hero.he} {fall}.
  One {day}, {hero.he} tried it {place}, all by {hero.himself}. But {hero.he} {fall}, not once but {number} times!
* Some birds [looked down at|seemed to laugh at] {hero.him}, and {hero.his} face [grew hot|turned red].
  {hero} felt [silly|sad and tired] and [wanted to go home|sat down with a sigh].

* "I will never learn to {skill}," {hero.he} said [to {hero.himself}|with a sniff].
  "It is too hard," said {hero} [in a low voice|and began to cry]. "I cannot {skill} at all."

* "I could not do it at first [either|myself]," said {hero.his} friend {friend.full}. "{tip}. I
    will stay with you."
  {hero.His} friend {friend.full} [came over|sat down next to {hero.him}]. "Nobody can do it at first," said {friend}.
    "{tip}. You can do it!"

* {hero} [nodded|stood up] and tried again. It was [a little|a bit] better! The next day they [practiced|worked] some
    more.
  So {hero} tried once more, with {friend} right beside {hero.him}. Every day, it went a little better.
* After {number} days, {hero} [shouted|called], "Look at me, {friend}! I can {skill}!"
  And then, after {number} days, it [worked|happened]! {hero} could {skill}, and {hero.he} [did not need any help|felt
    as light as a bird].

* {hero} thanked {friend} with a big hug. Now the two friends went out to {together} [every day|whenever they could].
  "Thank you for helping me, {friend}," said {hero}. From then on, they went to {together} {place}.
* {hero} learned that if you keep trying, hard things become easy.
  It had taken {number} days to learn to {skill}, and {hero} was proud of every one.
  And when a [little|small] {hero.kind} asked {hero.him} how to {skill}, {hero} said, "{tip}."
""",
    ),
    Plot(
        "a surprise party",
        "gift",
        BOTH,
        {
            "colour": COLOURS,
            "gift": "bike, kite, drum, scarf, sled, wagon, hat, ball, lamp, umbrella, guitar, rocking chair",
            "cake": "chocolate, carrot, apple, banana, honey, lemon, cherry, strawberry",
            "excuse": "clean the house, wash the windows, visit the doctor, rake the leaves, help at the shop",
        },
        """
* Tomorrow was {hero.his} birthday, and {hero.he} wished for {colour.a} {gift}.
  It was almost {hero.his} birthday. More than anything, {hero.he} wanted {colour.a} {gift}.
* {hero.He} had told {hero.his} {adult} and {hero.his} best friend, {friend.full}, [many times|all about it].
  {hero.He} had drawn it for {hero.his} {adult} and {hero.his} best friend, {friend.full}.

* But on the big day, nobody said a word. {hero.His} {adult} was [busy|in a hurry] and [went out early|rushed out].
  But when the day came, {hero.his} {adult} did not even say "happy birthday" at breakfast.
* So {hero} went to see {friend} and asked {friend.him} to [play|come over].
  {hero} walked to {friend}'s home and knocked on the door.

* "I cannot play today," said {friend} [quickly|and looked away]. "I have to {excuse}."
  "Sorry, {hero}," said {friend}. "Today I have to {excuse}. [Maybe tomorrow|Some other time]!"

* {hero} [walked|wandered] around [all alone|by {hero.himself}] until [the sun went down|it was late]. "They all
    forgot me," {hero.he} thought.
  With a [heavy heart|lump in {hero.his} throat], {hero} sat alone on the grass. Had everyone forgotten {hero.his}
    birthday?
* At last {hero.he} went [home|back to the {home}]. {hero.He} [opened|pushed] the door, and [all the lights came
    on|candles lit up the room].
  When {hero.he} [came home|got back], all was dark and [still|silent]. Then a light went on!

* "Surprise! Happy birthday, {hero}!" shouted {friend}, {hero}'s {adult} and all {hero.his} friends. There was a big
    {cake} cake [on the table|with candles].
  "Surprise!" everyone [yelled|shouted]. There were balloons, {cake.a} cake, and all {hero.his} friends. "We did not
    forget you," said {friend} with a grin.

* {friend} gave {hero.him} a big box. Inside was {colour.a} {gift}, just as {hero.he} had wished! {hero}
    [danced|jumped] for joy.
  In the corner stood a box with a bow. {hero} opened it and found {colour.a} {gift}. {hero.His} wish had come true!
* {hero.He} thanked {friend} and {hero.his} {adult}, and they all ate {cake} cake [together|and sang songs].
  "Thank you, {friend}, and thank you, {adult.cap}," said {hero}. "[This is my best birthday ever|I love you all]!"
* The {gift} was [lovely|great], but knowing that [{hero.he} was loved|everyone cared] was even better.
  That night, {hero} fell asleep next to the {colour} {gift} with a smile.
""",
    ),
    Plot(
        "the race",
        "prize",
        BOTH,
        {
            "colour": COLOURS,
            "prize": "cup, ribbon, medal, bell, flag, star, crown, cap",
            "start/finish": "gate/river, big rock/mill, bridge/windmill, fountain/church, barn/lake",
            "trip": "a root, a stone, a branch, a log, a bucket",
            "judge": "old owl, wise goat, jolly baker, tall farmer, old goose",
        },
        """
* {hero.He} could run [very fast|like the wind], and {hero.he} wanted to win the big race.
  The big race was coming, and {hero} practiced every [day|morning] to win it.
* The prize was {colour.a} {prize}, and {hero} [dreamed of it at night|thought of nothing else].
  The winner would get {colour.a} {prize}. {hero} [already|even] knew where to [put|keep] it.

* On the day of the race, {hero} stood at the {start} next to {hero.his} friend {friend.full}.
  All the runners met at the {start}, and so did {hero} and {hero.his} friend {friend.full}.
* "Run to the {finish}!" said the {judge}. "[Ready, set|One, two, three], go!"
  "First one at the {finish} wins," said the {judge}. "[Ready|On your marks], set, go!"
* Soon {hero} was in front, and {friend} was [close|right] behind. Then {friend} tripped over {trip}.
  {hero} and {friend} ran faster than [all the rest|the others]. But then {friend} fell over {trip}.

* "Ouch, my knee!" cried {friend}. "Go on, {hero}! [You can still win|Do not wait]!"
  "Ow! I hurt my leg," said {friend}, and {friend.he} [began to cry|could not get up].

* {hero} looked at the {finish}. It was so [near|close]! But {hero.he} could not leave {friend} behind.
  {hero} stopped. {hero.He} thought of the {colour} {prize}, and then looked at {friend}'s tears.
* {hero.He} [ran|went] back and helped {friend} up. [Slowly|Together], they walked on.
  {hero.He} turned and took {friend}'s {hero.hand}. [Side by side|Step by step], they went on together.
* They were the last at the {finish}, but everyone [clapped|cheered].
  The others came to the {finish} first, yet everyone [clapped|cheered] for them.

* "[Someone else was faster|You were not the first], {hero}," said the {judge}, "but you were the kindest. This
    {prize} is for you."
  "Thank you for coming back for me, {hero}," said {friend}. Then the {judge} gave {hero} the {colour} {prize} for
    being kind.

* {hero} [was surprised|jumped for joy]. {hero.He} shared the {prize} with {friend}, and they took turns keeping it.
  {hero} held up the {colour} {prize}, and {friend} cheered the loudest of all.
* {hero} learned that being kind is better than being [first|fast].
  {hero.He} had won the {prize} in the [best|kindest] way of all.
""",
    ),
    Plot(
        "telling the truth",
        "item",
        BOTH,
        {
            "colour": COLOURS,
            "item": "vase, plate, jar, cup, bowl, teapot, jug, lamp",
            "game": "throwing a ball, jumping about, dancing around, spinning around, playing tag, hopping on one foot",
            "hiding": "under the bed, behind the stove, under a rug, in a basket, behind a curtain, in a drawer",
            "craft": "clay, wood, tin, stone",
        },
        """
* {hero.His} {adult} had {colour.a} {item} that {adult.he} [loved very much|had kept for many years].
  On the shelf stood {colour.a} {item}. It [belonged to|was the pride of] {hero.his} {adult}.
* "Do not play near it," {hero.his} {adult} always said, and {hero} wanted to be good.
  {hero} thought it was [beautiful|very pretty], and {hero.he} wanted to [be careful|take good care of it].

* One day, {hero} and {hero.his} friend {friend.full} were {game} [inside|indoors]. Crash! {hero} bumped the
    shelf, and the {item} broke.
  One rainy day, {hero} was {game} with {hero.his} friend {friend.full}. Bang! {hero} hit the shelf, and the {item}
    fell and broke.
* {hero} was afraid. {hero.He} [quickly|quietly] hid the pieces {hiding}.
  {hero.His} heart [beat fast|jumped]. {hero.He} [picked up|gathered] the pieces and hid them {hiding}.

* "You should tell the truth," [whispered|said] {friend}. "I will go with you, {hero}."
  "[Hiding it will not help|That is not right], {hero}," said {friend}. "Let us tell your {adult} together."

* {hero} shook {hero.his} head. But at supper, {hero.he} could only think of the pieces {hiding}.
  At first {hero} said no. But {hero.his} tummy hurt each time {hero.he} looked at the [empty shelf|shelf].
* At last {hero.he} took {friend}'s {hero.hand}, went to {hero.his} {adult} and [showed {adult.him} the pieces|told
    {adult.him} everything].
  So {hero.he} asked {friend} to come, and they [brought|carried] the pieces to {hero}'s {adult}.

* "I broke your {colour} {item}, and I hid it," said {hero}. "I am [so|very] sorry, {adult.cap}."
  "It was me, {adult.cap}," said {hero}. "I broke the {item}. I was [scared|afraid] to tell you."

* {hero.His} {adult} hugged {hero.him}. "I am [glad|proud] that you told the truth," {adult.he} said.
  "Thank you for being honest," said {hero.his} {adult}. "You matter more to me than any {item}."
* Then {hero} and {friend} made a new {item} out of {craft} and painted it {colour}, like the old one.
  The next day, {hero} and {friend} made a new {colour} {item} from {craft} and put it on the shelf.
* {hero} thanked {friend}. Telling the truth was hard, but now {hero.he} felt [light|happy].
  {hero} learned that the truth is [always best|better than hiding], and that {friend} was a true friend.
""",
    ),
)
