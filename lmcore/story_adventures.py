"""Plots about finding, growing and being brave for `lmcore.stories`, as data, written as in `lmcore.story_plots`."""

from lmcore.story_plots import BOTH, COLOURS, Plot

ADVENTURES = (
    Plot(
        "lost and found",
        "toy",
        BOTH,
        {
            "colour": COLOURS,
            "toy": "scarf, hat, toy car, toy boat, ball, doll, teddy bear, blanket, drum, umbrella, whistle",
            "day": "morning, afternoon, sunny day, windy morning, warm day, cold morning",
            "place": "park, beach, meadow, playground, fair, lake, forest",
            "spot": "under the bridge, near the pond, behind the barn, beside the well, by the garden gate, "
            "near the old tree",
        },
        """
* {hero.His} {adult} had given {hero.him} {colour.a} {toy}, and {hero.he} loved it [very much|with all {hero.his}
    heart].
  The thing {hero.he} loved most was {colour.a} {toy}, a gift from {hero.his} {adult}.
  {hero.He} had {colour.a} {toy} that {hero.his} {adult} had [made|found|bought] just for {hero.him}.
* {hero.He} took it [everywhere|wherever {hero.he} went].
  {hero.He} [kept|put] it next to {hero.his} bed every night.
  It made {hero.him} smile even on [gray|bad|rainy] days.

* One {day}, {hero} wanted to take the {toy} to the {place}, but it was [gone|not there].
  One {day}, {hero} got ready to go to the {place}. But where was the {toy}? It was gone!
* {hero.He} looked under the bed and [behind the door|inside every box], but {hero.he} could not find it.
  {hero.He} looked [high and low|here and there|in every corner], but there was no {toy}.
* {hero} sat down [on the steps|on the floor] and [cried|began to cry].
  A [big|hot] tear ran down {hero.his} face.

* "[Please do not cry|Do not be sad], {hero}," said {hero.his} friend {friend.full}. "Where did you [have it last|see
    it last]?"
  "What is wrong, {hero}?" asked {hero.his} friend {friend.full}. "[I can help you look|Let me help you]."

* "I cannot find my {toy}," said {hero}. "I [played|sat] with it {spot} yesterday."
* So the two friends [ran|hurried|walked] back to look.
  {friend} took {hero.his} {hero.hand}, and they went there [at once|together].
* There, {spot}, they saw something {colour}. It was the {toy}!
  They looked and looked. Then {friend} [called out|shouted] and held up the {colour} {toy}!

* "You found it! Thank you, {friend}!" [said|cried] {hero}. "You are [a true friend|the best friend in the world]."
  "My {toy}!" cried {hero}. "Oh, thank you, {friend}! [I was so worried|I missed it so much]."

* Then {hero} and {friend} went to the {place} with the {colour} {toy} and [played until dark|had a wonderful time].
  {hero} hugged the {toy} tight. Then the two of them went to the {place} and [played all day|had a lot of fun].
* From that day on, {hero} always put the {toy} [back in its place|in a safe place].
  {hero} learned that a good friend helps when [things go wrong|you are sad].
  That night, back in the {home}, {hero} slept with the {toy} [in {hero.his} arms|by {hero.his} side].
""",
    ),
    Plot(
        "afraid of the dark",
        "dark",
        ("animal",),
        {
            "dark": "cave, tunnel, old mill, old mine, old barn",
            "light": "lantern, candle, lamp, torch",
            "lost": "ball, marble, apple, bell, coin, acorn",
            "noise/source": "drip/drop of water, creak/old door in the wind, squeak/tiny bat",
        },
        """
* {hero.He} was afraid of the dark, and {hero.he} wished to be brave.
  {hero.He} wanted to be brave, but {hero.he} was [very|so] scared of the dark.
* Most of all, {hero.he} was afraid of the {dark} [near {hero.his} home|at the edge of the woods].
  Near {hero.his} home was {dark.a} as black as night, and {hero} never went [near it|inside].

* One day, {hero.his} friend {friend.full} went into the {dark} to get {lost.a} that had rolled in.
  One evening, {hero.his} friend {friend.full} went into the {dark} to look for {friend.his} {lost}.
* {hero} waited [outside|in the grass], but {friend} did not come [out|back].

* "Help! I [hurt my foot|am stuck], and I cannot get out!" called {friend} from [deep inside|the dark].
  "{hero}, please help me!" cried {friend}. "It is so dark that I [cannot find the way|am lost]!"

* {hero}'s knees shook, but {hero.he} could not leave {friend} alone. {hero.He} lit {light.a} and went in.
  {hero} wanted to run away. Then {hero.he} thought of {friend}, took {light.a} and stepped inside.
* {noise.cap}, {noise}! What was that? It was only {source.a}.
  Something went {noise}, {noise}! {hero} held up the {light} and saw only {source.a}.
* [Step by step|Slowly], {hero.he} walked until the {light} shone on {friend}'s face.
  At last, the {light} showed {hero.him} {friend} with the {lost}.
* They held {hero.hand}s and followed the {light} [out|outside].

* "Thank you, {hero}!" said {friend}, and hugged {hero.him}. "You [were|are] so brave!"
  "You came for me, even in the dark!" said {friend}. "Thank you, {hero}. You are the bravest {hero.kind} I know."

* {hero} [smiled|felt proud]. The {dark} did not look so scary anymore, and {hero.his} wish had come true.
  After that, {hero} was not afraid of the {dark} anymore. {hero.He} was brave now, just as {hero.he} had wished.
* {hero.He} learned that being brave means [helping when you are scared|going on when you are afraid].
  That night, {hero.he} blew out the {light} and [slept well|fell asleep] in the dark.
""",
    ),
    Plot(
        "a rainy day",
        "place",
        ("child",),
        {
            "place/plan/game": "beach/build a sand castle/build a castle out of pillows, "
            "zoo/see the lions/make a zoo with all your toy animals, "
            "lake/sail a little boat/sail paper boats in the tub, "
            "fair/see the puppet show/put on a puppet show with old socks, "
            "woods/sleep in a tent/make a tent out of blankets, "
            "park/have a picnic/have a picnic on the rug",
            "colour": COLOURS,
            "wear": "boots, coat, raincoat, hat, jacket",
            "food": "soup, cocoa, toast, warm milk, apple pie, hot tea",
        },
        """
* {hero.He} was [very|so] excited, because today {hero.he} was going to the {place} to {plan}.
  All week long, {hero.he} had [dreamed|talked] of only one thing. {hero.He} wanted to go to the {place} and {plan}.
* {hero.He} put on {hero.his} new {colour} {wear} and [ran to|opened] the door.
  {hero.He} was ready early and even wore {hero.his} {colour} {wear}.

* But when {hero} looked [outside|out of the window], [the sky was dark|there were big gray clouds]. Rain fell on the
    roof. Plop, plop, plop!
  Then came [a loud boom|a flash of light], and rain began to pour. Soon there were puddles [everywhere|on the road].
* {hero} [frowned|pouted] and [stamped {hero.his} foot|hung {hero.his} head]. There would be no trip to the {place}
    today.
  "Now I cannot go to the {place}," {hero} [thought|said sadly], and {hero.his} eyes filled with tears.

* "We cannot stop the rain," said {hero.his} {adult}, "but we can still have fun. Let us {game}!"
  "I have an idea," said {hero.his} {adult} with a [wink|smile]. "We can stay dry and {game}!"

* {hero} [clapped {hero.his} hands|jumped up]. They worked and laughed, and {hero.he} [forgot all about|did not mind]
    the rain.
  At first {hero} was not sure, but soon {hero.he} was [giggling|laughing]. It was [much more|more] fun than {hero.he}
    had thought.
* Then they had some {food} and [listened to the rain|watched the drops on the glass].
  When they were [hungry|tired], {hero.his} {adult} [made|brought] some {food}.

* "Look, the rain has stopped!" [called|said] {hero}. "[There is a rainbow|I can see a rainbow] in the sky!"
  "This was a [lovely|great] rainy day," said {hero}. "Thank you, {adult.cap}!"

* The next day, the sun [shone|was out]. {hero} put on the {colour} {wear}, and they went to the {place} to {plan}
    after all.
  In the end, they had to wait just one day. Then {hero} went to the {place} in {hero.his} {colour} {wear}, as happy
    as could be.
* But {hero} [never forgot|always remembered] the fun they had on that rainy day.
  {hero} learned that even a rainy day can be a [good|happy] day.
""",
    ),
    Plot(
        "the lost baby",
        "baby",
        ("child",),
        {
            "baby/mother/where/sound": "duckling/duck/pond/quack, kitten/cat/barn/meow, lamb/sheep/meadow/baa, "
            "piglet/pig/farm/oink, chick/hen/coop/cheep, puppy/dog/farm/woof, calf/cow/green field/moo, "
            "gosling/goose/lake/honk, owlet/owl/old tower/hoot",
            "spot": "behind a bush, under a bench, in the tall grass, next to a log, between two rocks, by the road",
            "feature": "a white spot on its head, a black spot on its back, one dark ear, a tiny brown nose, "
            "big round eyes",
            "wrap": "scarf, sweater, jacket, coat",
            "colour": COLOURS,
        },
        """
* {hero.He} loved animals and [wished for|wanted] one of {hero.his} own.
  More than anything, {hero.he} wanted an animal [to take care of|for a friend].
* One chilly [day|evening], {hero} was [walking home|out for a walk] in {hero.his} {colour} {wrap} when {hero.he}
    heard a sound.
  One cool [day|morning], {hero} went out in {hero.his} {colour} {wrap} and heard [something|a sound].

* "{sound.cap}! {sound.cap}!" It was {baby.a}, all alone {spot}. It was [cold|wet] and scared.
  "{sound.cap}, {sound}!" There, {spot}, sat a [tiny|little] {baby}. It was [shaking|lost and cold].
* It had {feature}. {hero} [knelt down|moved slowly] and wrapped it in the {colour} {wrap}.
  It had {feature}. {hero} [picked it up|lifted it] gently and put the {colour} {wrap} around it.

* "[Do not be afraid|Hush now], little {baby}," said {hero}. "I will help you find your mother."
  "Poor {baby}, [where is your mother|did you lose your mother]?" asked {hero}. "[I will help you|We will look
    together]."

* {hero} [wanted|would have loved] to keep the {baby}. But {hero.he} knew its mother must [miss it|be worried].
  {hero} showed the {baby} to {hero.his} {adult}. "Its mother must [miss it|be worried]," said {hero.his} {adult}.
* So {hero.he} [set off|hurried] to the {where} with the {baby} in {hero.his} arms.
  {hero} thought of the {where} and [ran|hurried] there with the {baby} in the {wrap}.
* At the {where}, a big {mother} was looking [around|everywhere]. "{sound.cap}!" called the {baby}, and the
    {mother} came [at once|quickly].
  Near the {where}, {hero} heard a loud "{sound}" and saw a big {mother}. The {baby} [wiggled|jumped] with joy. It had
    found its mother!

* "[There you go|Now you are home], little {baby}," said {hero}. "[Stay close to your mother|Do not get lost again]!"
  "Goodbye, little {baby}," said {hero} with a [smile|wave]. "[I will come and see you soon|You are safe now]."

* After that, {hero} [often went|liked to go] to the {where}. And {baby.a} with {feature} always came to play.
  The next [week|day], {hero} went back to the {where}. The {baby} with {feature} ran to {hero.him} [gladly|quickly].
* So {hero} had [an animal friend|a new friend], and the {baby} had its mother.
  {hero} was glad. Helping the {baby} was better than keeping it.
""",
    ),
    Plot(
        "planting a seed",
        "plant",
        BOTH,
        {
            "plant": "sunflower, pumpkin, rose, tomato plant, daisy, melon, bean plant, strawberry plant",
            "colour": COLOURS,
            "pot": "pot, bucket, bowl, box, tub",
            "sun": "by the window, on the steps, beside the door, in the yard, near the fence",
            "weeks": "two, three, four, five",
        },
        """
* {hero.He} wished for a [little|tiny] garden, so one day {hero.his} {adult} gave {hero.him} a seed.
  {hero.He} wanted to grow something, so one spring day {hero.his} {adult} gave {hero.him} a [small|brown] seed.
* "It will grow into {plant.a}," said {hero.his} {adult}. "[It needs|Give it] sun, water and time."
  "What is it?" asked {hero}. "Be patient, and you will see {plant.a}," said {hero.his} {adult}.

* {hero} put the seed into {colour.a} {pot} of [soft|dark] earth and set it {sun}.
  {hero} filled {colour.a} {pot} with earth, [hid|put] the seed in it and set it {sun}.
* Every [morning|day], {hero.he} gave it water, but there was [nothing to see|only earth in the {pot}].
  {hero.He} watered it and watched it. One week went by, and [nothing happened|nothing came up].
* {hero} was [not happy|tired of waiting]. {hero.He} wanted to dig up the seed.
  {hero} began to worry and wanted to throw the {colour} {pot} away.

* "Wait!" said {hero.his} friend {friend.full}. "[A seed works in the dark|It is only sleeping]. Let us sing to it."
  "Do not give up, {hero}," said {hero.his} friend {friend.full}. "Good things take time. I will [wait|watch] with you."

* So {hero} and {friend} sat by the {pot} and [sang|told it stories] every day.
  {hero} listened to {friend}. They gave the seed [fresh|cool] water and [counted the days|waited] together.
* Then, after {weeks} weeks, a [tiny|little] green leaf came out of the earth! {hero} [jumped|hopped] up and down.
  And after {weeks} weeks, {hero} saw [a bit of|something] green in the {pot}. It was a [tiny|baby] leaf!

* "It is growing! Thank you, {friend}," cried {hero}. "I am so glad [I waited|we did not give up]!"
  "Look, {friend}!" [shouted|called] {hero}. "[Our|The] seed is awake! [You were right|Thank you for waiting with me]!"

* By the end of summer, {plant.a} stood {sun}, and {hero} [showed|proudly showed] it to {hero.his} {adult}.
  All summer long, it grew. In the end it was [a fine|a lovely|a strong] {plant}, and {hero} thanked {hero.his}
    {adult} for it.
* Now the {colour} {pot} was {hero.his} own little garden, and {friend} [came|visited] every day.
  {hero} learned that [good things take time|some things are worth waiting for].
  {hero} and {friend} sat beside the {plant} in its {colour} {pot} and [felt proud|smiled].
""",
    ),
    Plot(
        "stuck in a tree",
        "toy",
        ("child",),
        {
            "colour": COLOURS,
            "toy": "kite, paper plane, toy plane, paper bird, toy rocket",
            "tree": "oak, apple, pine, willow, cherry, maple",
            "day": "windy day, windy morning, breezy afternoon",
            "place": "park, meadow, playground, field, garden",
            "helper/food": "squirrel/nuts, bird/seeds, raccoon/berries, cat/cheese, crow/corn, chipmunk/crackers",
            "size": "little, brown, friendly, funny, small, clever",
        },
        """
* {hero.He} had a new {colour} {toy}, and {hero.he} wanted to see it [fly up high|go higher than the roof].
  {hero.His} {adult} had [given|bought] {hero.him} {colour.a} {toy}, and {hero.he} wanted it to fly [very high|up
    to the clouds].
* One {day}, {hero.he} took it to the {place} with {hero.his} friend {friend}.
  One {day}, {hero.he} and {hero.his} friend {friend} [ran|went] to the {place}.

* Up, up, up went the {toy}! Then the wind [pushed|carried] it into {tree.a} tree, and it [stayed there|got stuck].
  Whoosh! A [strong|big] wind blew the {toy} [right|straight] into the top of {tree.a} tree.
* {hero} jumped as high as {hero.he} could, and {friend} threw a stick, but [it was no use|it fell short].
  {friend} shook the {tree} tree and {hero} [shouted|poked with a stick], but the {toy} did not move.

* "My {colour} {toy} is [gone|lost]!" cried {hero}. "The tree is [much too|too] tall for us."
  "What can we do?" asked {hero}. "[I want my {toy} back|I just got that {toy}]."

* Just then, {size.a} {helper} [peeked|looked] out from the leaves. {friend} held up some {food}.
  In the tree sat {size.a} {helper}. "Maybe it can help," said {friend}, and {hero} held out some {food}.
* The {helper} looked at the {food}. Then it came closer and [pushed|bumped] the {toy}.
  The {helper} [hopped|moved] closer and gave the {toy} a good push.
* Down came the {colour} {toy}, right into {hero}'s [arms|hands]!
  The {toy} [floated|fell] down, and {hero} caught it!

* "Thank you, little {helper}!" [called|said] {hero}. "[Here is your treat|This is for you]. And thank you, {friend}!"
  "[Hooray|Hurrah]!" shouted {hero} and {friend}. "Thank you, {helper}! [Come down and eat|You are a good helper]!"

* The {helper} ate all the {food} under the {tree} tree. Then the {colour} {toy} flew again.
  They put the {food} under the {tree} tree for the {helper}. Then the {colour} {toy} flew [high|again], far from any
    tree.
* [After that|From then on], {hero} always brought {food} to the {place} for the {helper}.
  {hero} learned that help can come from [small friends|a friend you do not know yet].
""",
    ),
)
